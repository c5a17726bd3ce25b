"""xAI's Grok.

Only what sets Grok apart from other OpenAI-compatible models.
"""
