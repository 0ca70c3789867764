"""Entry points: argv and environment in, one library call, exit codes out."""
