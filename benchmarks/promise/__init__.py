"""Promises on data that no search has seen: `python -m benchmarks.promise --help`."""
