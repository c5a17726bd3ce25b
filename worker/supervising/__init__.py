"""Several worker processes on one host: a supervisor that runs no turn, and its children.

Source: docs/adr/0049-a-supervisor-keeps-the-workers-of-a-host.md
"""
