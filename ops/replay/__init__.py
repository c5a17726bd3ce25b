"""Recorded dialogues: reads them, runs them with their recorded tools, compares what came out.

No command line here.
"""
