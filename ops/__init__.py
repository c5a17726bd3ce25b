"""What surrounds the workers: command line, simulator, embedded Redis, benchmarks, fault drills.

Workers and producers run without any of it.
"""
