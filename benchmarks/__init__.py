"""Time and memory, measured; `python -m benchmarks` runs them all."""
