"""Benchmarks: Turnline beside simpler ways to do the same, in one run on one machine.

An instrument of the repository, not part of the wheel.
"""
