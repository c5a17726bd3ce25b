"""Recurring turns: what is scheduled, when it is due, and who submits it.

Schedules stand in shard 0, and one entry of its queue stands for all of them, due at their next
tick. Whoever claims it submits what is due, as any producer does. Nothing here runs a turn.
"""
