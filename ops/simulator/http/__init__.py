"""The simulator's HTTP/1.1: connections with control over every byte, heads, its own routes.

Nothing here knows what the model says.
"""
