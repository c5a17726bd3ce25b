"""Traces of turns: finds what was kept, draws it for a terminal or as a page.

No command line here.
"""
