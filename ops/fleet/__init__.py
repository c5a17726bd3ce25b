"""What commands, benchmarks and drills need of a fleet: to run one, and to read its state.

No command line here.
"""
