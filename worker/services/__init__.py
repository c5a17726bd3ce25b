"""Services that speak to models.

A service turns a context into frames; it knows no turn, no conversation and no Redis.
"""
