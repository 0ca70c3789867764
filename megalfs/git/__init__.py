"""Git: pointers, the git-lfs agent and server, repositories between peers."""
