"""The server's shell: links, the clock and the turn around `core.server`. It never opens user data."""
