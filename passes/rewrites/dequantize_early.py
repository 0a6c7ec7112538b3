"""Moves a DequantizeLinear in front of operators that only move codes around."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.graph import Graph, Node, Value
from qgraph.passes.rewrites._qdq import label, parameters
from qgraph.pattern import Match, Pattern, maybe, op, var
from qgraph.pipeline import Fusion, Reject

# Their first input is the data, and every element of the result is one of its elements.
MOVERS = (
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)


@dataclass(frozen=True)
class DequantizeEarly(Fusion):
    """Run operators that only move elements on floats, behind the DequantizeLinear.

    Before:
        r = Reshape(q, shape)                       # q: codes
        y = DequantizeLinear(r, scale, zero_point)

    After:
        d = DequantizeLinear(q, scale, zero_point)
        y = Reshape(d, shape)

    When:
        One scale per tensor, positive where the operator is a MaxPool; the operator's data is not
        a constant.

    Leaves alone:
        Codes that something else reads; scales a channel; computed parameters.

    Numerics:
        Exact: the same numbers in the same places.

    Source:
        The definition of each operator. `symmetric_int8` and `signed_to_unsigned` read
        QuantizeLinear and DequantizeLinear side by side.
    """

    name: ClassVar[str] = "dequantize_early"
    pattern: ClassVar[Pattern] = op.DequantizeLinear(
        op.any_of(*MOVERS)(var("codes"), bind="mover", open=True),
        var("scale"),
        maybe("zero_point"),
        bind="dq",
    )

    def applies(self, graph: Graph, m: Match) -> bool:
        """Constants are no codes on their way."""
        return not graph.is_constant(m.value("codes"))

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Exchange the two nodes."""
        mover, dq = m.node("mover"), m.node("dq")
        found = parameters(graph, dq)
        if isinstance(found, str):
            return Reject(found)
        if found.axis is not None:
            return Reject("it has a scale a channel")
        if mover.op_type == "MaxPool" and not (found.scale > 0).all():
            return Reject("its scale is not positive")
        codes = m.value("codes")
        early = _copy(graph, dq, [codes, *dq.inputs[1:]], mover, f"{label(dq)}_early")
        if codes.shape is not None:
            early.outputs[0].shape = codes.shape.copy()
        early.outputs[0].type = dq.outputs[0].type
        moved = _copy(graph, mover, [early.outputs[0], *mover.inputs[1:]], mover, label(mover))
        moved.outputs[0].type = dq.outputs[0].type
        moved.outputs[0].shape = dq.outputs[0].shape
        return moved.outputs[0]


def _copy(graph: Graph, node: Node, inputs: list[Value | None], before: Node, name: str) -> Node:
    attributes = dict(node.attributes)
    return graph.insert(node.op_type, inputs, before=before, attributes=attributes, name=name)
