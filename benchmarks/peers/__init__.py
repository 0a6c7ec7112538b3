"""Post-training int8 of other packages beside qgraph's: `python -m benchmarks.peers --help`."""
