"""Recorded dialogues: reads them, serves their recorded tools, compares what a fleet made of them.

No command line here.
"""
