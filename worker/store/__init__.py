"""Conversations on Redis: loading, checkpoints, events, commits.

The only room that reads and writes the keys of a conversation; each change is one script.
"""
