"""Benchmarks: Turnline beside simpler ways to do the same, in one run on one machine."""
