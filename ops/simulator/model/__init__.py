"""The simulated model: what it is asked, what it answers, in which chunks, at what price.

No input or output here.
"""
