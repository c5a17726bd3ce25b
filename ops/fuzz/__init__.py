"""Fuzzing: inputs that grow towards new code and outcomes, held against what must always hold.

An instrument of the repository, not part of the wheel.
"""
