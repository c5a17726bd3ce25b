"""The wire of `POST /v1/responses`: its items, its events, what it remembers, faults of its events.

What is said is decided in `model`, for all wires alike. Reasoning goes to the client as sealed text
(`reasoning_blobs`) and counts again when it comes back; `continuity` checks that it does.
"""
