"""A normalisation with the residual addition in front of it, as one operator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qgraph.context import Context
from qgraph.graph import Attribute, Graph, Node, Value
from qgraph.passes.contrib._contributed import DOMAIN, Contributed
from qgraph.passes.contrib._shapes import complete_shapes
from qgraph.pattern import Match
from qgraph.pipeline import PassReport, Reject

# Outputs: the result, two statistics that are for training, and the sum.
_SUM = 3


@dataclass(frozen=True)
class Skip(Contributed):
    """A fusion of a normalisation (node `norm`) with the sum (value `sum`) that it normalises."""

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Apply the fusion everywhere, once the shapes are known."""
        complete_shapes(graph)
        return super().run(graph, context)

    def applies(self, graph: Graph, m: Match) -> bool:
        """Whether a sum is normalised."""
        add = m.value("sum").producer()
        return add is not None and graph.is_standard(add, "Add")


def with_skip(
    m: Match, op_type: str, parameters: Sequence[Value], attributes: Mapping[str, Attribute]
) -> Value | Reject:
    """Write a normalisation (node `norm`) of a sum as one operator, in the place of the sum.

    Args:
        m: The match; `sum` is what is normalised.
        op_type: The operator.
        parameters: Its inputs behind the two that are added.
        attributes: Its attributes.

    Returns:
        What replaces the normalisation's result, or the reason why none can.
    """
    graph, norm, total = m.graph, m.node("norm"), m.value("sum")
    add = total.producer()
    if add is None or add.graph is not norm.graph:
        return Reject("the sum is made outside of its graph")
    reason = _unfit(graph, norm, add)
    if reason is not None:
        return Reject(reason)
    read = total.is_graph_output() or len(list(total.uses())) > 1
    node = graph.insert(
        op_type,
        [*add.inputs, *parameters],
        before=add,
        attributes=attributes,
        outputs=_SUM + 1 if read else 1,
        domain=DOMAIN,
        like=norm.outputs[0],
        name=f"{norm.name}_{op_type}",
    )
    if read:
        for unused in node.outputs[1:_SUM]:
            unused.name = ""
        whole = node.outputs[_SUM]
        whole.type = total.type
        whole.shape = None if total.shape is None else total.shape.copy()
        graph.replace(total, whole)
        graph.remove_unread([add])
    return node.outputs[0]


def _unfit(graph: Graph, norm: Node, add: Node) -> str | None:
    shapes = [graph.shape(each) for each in add.inputs]
    first, second = shapes
    if first is None or second is None or first != second or None in first:
        return "the two that it adds are not known to have one shape"
    if len(first) not in (2, 3) or not isinstance(first[-1], int):
        return "the sum is not [batch, length, width] with a known width"
    if graph.attribute(norm, "axis", -1) not in (-1, len(first) - 1):
        return "it normalises more than the last axis"
    if any(graph.is_constant(each) for each in add.inputs):
        return "what it adds is a constant"
    return None
