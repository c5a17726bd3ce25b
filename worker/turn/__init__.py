"""One conversation's run: gather a turn from the inbox, answer it in an attempt, commit it.

The adapters (store, services, tools, telemetry, queue) are handed in behind the small protocols of
`ports`; nothing here imports them.
"""
