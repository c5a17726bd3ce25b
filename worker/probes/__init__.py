"""What tells those outside how a process is: over HTTP, and to the system's manager of services.

It knows nothing of queues, turns and Redis: what it tells is handed to it. Nothing here runs in the
event loop of the turns but what has to show that this loop moves.
"""
