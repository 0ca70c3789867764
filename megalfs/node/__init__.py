"""The shell: event loop, clock, signals. Performs what the core decides."""
