"""Runs conversations with Grok as a fleet of queue workers."""
