"""xAI's Grok."""
