"""The pass before a worker starts: bounded in time and size, and ended by a signal at once."""
