"""Time and memory, measured; `python -m benchmarks` runs them all."""

import os

# What is timed must run; child processes inherit it.
os.environ["QGRAPH_CACHE"] = "off"
