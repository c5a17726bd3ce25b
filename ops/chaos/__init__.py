"""Fault drills: a fleet under load is killed, stopped and cut off, then everything is checked.

An instrument of the repository, not part of the wheel.
"""
