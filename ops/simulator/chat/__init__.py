"""The wire of `POST /v1/chat/completions`: its requests, its chunks, and faults of its chunks.

What is said is decided in `model`, for all wires alike.
"""
