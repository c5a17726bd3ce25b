"""OpenAI-compatible chat completions.

Requests, connections, time limits and failures; the bytes of a reply are read in `pipeline`.
"""
