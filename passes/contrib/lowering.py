"""Writes a graph for one engine: the contributed operators that it has kernels for."""

from collections.abc import Mapping, Sequence
from typing import Any

from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.passes.cleanup.merge_equal import MergeEqual
from qgraph.passes.contrib import CONTRIB
from qgraph.pipeline import Hook, Pass, Pipeline, Stage
from qgraph.registry import by_name
from qgraph.targets.contrib import Contributed


def lowering(
    engine: Contributed,
    float_type: str = "fp32",
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Pass]:
    """Return the passes that write an engine's operators, and clean up behind them.

    Args:
        engine: What it has; see `qgraph.targets.contrib`.
        float_type: What the graph computes in, or will.
        options: By pass name; they win over the engine's.
    """
    operators = engine.operators.get(float_type, frozenset())
    passes = [
        each.with_options({**engine.options.get(name, {}), **(options or {}).get(name, {})})
        for name, each in by_name(CONTRIB).items()
        if each.writes in operators
    ]
    return [*passes, MergeEqual()] if passes else []


def lower(
    graph: Graph,
    engine: Contributed,
    float_type: str = "fp32",
    context: Context | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    hooks: Sequence[Hook] = (),
) -> list[Stage]:
    """Write an engine's operators into a graph, in place; graph inputs and outputs stay."""
    return Pipeline(lowering(engine, float_type, options), hooks=hooks).run(graph, context)
