"""Traces and metrics of turns, made cheaply here and sent by whatever sinks there are."""
