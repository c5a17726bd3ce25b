"""Runs conversations with Grok as a fleet of queue workers.

The files beside the rooms are the composition root (`main`), how a process begins and ends, and
what several rooms share: errors, leases, logs, settings.
"""
