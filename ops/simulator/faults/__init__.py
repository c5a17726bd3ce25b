"""The plan of a response, and the scenarios that spoil it.

No input or output here.
"""
