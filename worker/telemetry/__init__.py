"""Traces and metrics of turns: recorded here, and exported over OTLP, to Redis and to Prometheus.

The rest of the worker calls the observer of `worker.turn` alone; it knows no span and no attribute.
"""
