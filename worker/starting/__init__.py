"""The pass before a worker starts: bounded in time and size, and ended by a signal at once.

What is asked of Redis and of the provider before a worker serves; nothing here runs afterwards.
"""
