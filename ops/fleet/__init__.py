"""What commands, benchmarks and drills need of a fleet: to run one, and to operate one.

Operating is reading its queue, its turns and its dead letters. No command line here.
"""
