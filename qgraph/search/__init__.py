"""Finds the mix of precisions that keeps a promise: sensitivity, cost, choice, proof."""

from qgraph.search.run import compile_within

__all__ = ["compile_within"]
