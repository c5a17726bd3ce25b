"""Traces and metrics of turns, made cheaply here and sent by whatever sinks there are.

The rest of the worker knows the observer's methods alone, no span and no attribute.
"""
