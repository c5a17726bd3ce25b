"""The pass before a worker starts."""
