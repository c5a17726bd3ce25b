"""Leases of conversations: the ARQ worker whose queue is a table of leases, its jobs and its Lua.

Nothing here knows what a turn is.
"""
