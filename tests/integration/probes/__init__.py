"""Probes of real processes, over real sockets.

What several of these tests ask stands in `asking`.
"""
