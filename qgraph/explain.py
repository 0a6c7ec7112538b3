"""Why every node has its precision and every value its type: the content of explain.json."""

from collections import Counter
from typing import Any

from qgraph.graph import Graph


def explanation(graph: Graph) -> dict[str, Any]:
    """Return reasons by node and value name, JSON-able.

    `nodes`: name -> [precision, reason]; `quantized`: value -> [type, reason]; `float`: value ->
    reason. Names are those the values had before Q/DQ was inserted.
    """
    plan = graph.facts.plan
    if plan is None:
        return {"nodes": {}, "quantized": {}, "float": {}}
    return {
        "nodes": {name: list(entry) for name, entry in plan.nodes.items()},
        "quantized": {
            name: [placement.spec.dtype, placement.reason]
            for name, placement in plan.activations.items()
        },
        "float": dict(plan.floats),
    }


def node_precisions(graph: Graph, precision: str) -> dict[str, int]:
    """Count nodes by precision; without a plan, all of them have the artifact's."""
    plan = graph.facts.plan
    if plan is None:
        return {precision: sum(1 for _ in graph.walk())}
    return dict(Counter(entry[0] for entry in plan.nodes.values()))
