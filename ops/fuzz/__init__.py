"""Fuzzing: inputs that grow towards new code and outcomes, held against what must always hold."""
