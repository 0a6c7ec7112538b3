"""`python -m qgraph`."""

from qgraph.cli import main

main()
