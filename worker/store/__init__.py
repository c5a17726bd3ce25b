"""Conversations on Redis: loading, checkpoints, events, commits."""
