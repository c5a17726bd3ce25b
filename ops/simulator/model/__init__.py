"""The simulated model: what it is asked, what it answers, how fast, at what price.

No input or output here, and no wire's form: that is `chat`'s.
"""
