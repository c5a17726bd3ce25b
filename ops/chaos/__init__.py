"""Fault drills: a fleet under load is killed, stopped and cut off, then everything is checked."""
