"""What surrounds the workers: command line, simulator, embedded Redis, benchmarks, fault drills."""
