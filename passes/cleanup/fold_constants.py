"""Nodes whose results are known before any input is become constants."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.collector import collector_paused
from qgraph.context import Context
from qgraph.errors import UsageError
from qgraph.graph import Graph, Node, Value
from qgraph.onnx_io import infer_shapes
from qgraph.passes.cleanup._branches import inline_branch
from qgraph.passes.cleanup._evaluate import FOLDABLE, Evaluator, quiet_numpy
from qgraph.passes.cleanup._partial import Dim, Tracker, dims
from qgraph.passes.cleanup._shapes import replaceable
from qgraph.passes.cleanup._sizes import TooLargeError, result_bytes
from qgraph.pipeline import Pass, PassReport
from qgraph.traversal import bodies

# Every sweep but the last folds something; a chain of shapes behind shapes this long is no model.
_MAX_SWEEPS = 5


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what does not depend on the inputs, shapes of known size included.

    Before:
        s = Shape(x)                      # x: float[N, 3, 8, 8]
        c = Gather(s, 1)
        u = Unsqueeze(c, [0])
        t = Concat <axis = 0> (u, [-1])
        y = Reshape(w, t)                 # w: a value of 3 * 64 elements

    After:
        y = Reshape(w, [3, -1])

    When:
        All inputs are constants, the operator is deterministic and its result has a size that
        can be told beforehand; or the result is a small integer vector all of whose elements
        come from constants and known dimensions; or it is the shape of a Reshape with one
        unknown element (it becomes -1) and otherwise such that equal those of the input (they
        become 0); or an If whose condition is constant, which its body replaces; or a CastLike of
        a constant, which becomes a Cast first. Inside subgraphs too.

    Leaves alone:
        Results that are larger than the inputs by more than `max_bytes`; strings, sequences,
        8-bit floats and 4-bit integers; QuantizeLinear and DequantizeLinear, since they say how
        an engine should compute, not what; random operators; operators of other domains;
        convolutions and other heavy operators.

    Numerics:
        Exact up to float rounding: onnx's reference evaluator computes in the operator's type.

    Source:
        https://onnx.ai/onnx/api/reference.html.

    Attributes:
        max_bytes: How many bytes a constant may have more than the ones it is computed from.
    """

    name: ClassVar[str] = "fold_constants"

    max_bytes: int = 2**20

    def __post_init__(self) -> None:
        """Refuse a negative limit.

        Raises:
            UsageError: `max_bytes` is negative.
        """
        if self.max_bytes < 0:
            raise UsageError(f"fold_constants.max_bytes must be 0 or more, got {self.max_bytes}")

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Fold in one sweep, first nodes first.

        Where that makes constants of parameters such as pads while shapes are still open, shapes
        are inferred anew and another sweep follows.
        """
        report = PassReport()
        for _ in range(_MAX_SWEEPS):
            sweep = _Sweep(graph, self.max_bytes)
            with quiet_numpy(), collector_paused():
                sweep.over(graph.main)
            report.changed += sweep.report.changed
            report.details += sweep.report.details
            report.refused = sweep.report.refused
            if not sweep.report.changed or not sweep.tracker.open_chains():
                break
            # A failure loses nothing: the shapes stay as they were.
            infer_shapes(graph)
        return report


@dataclass
class _Sweep:
    graph: Graph
    max_bytes: int
    report: PassReport = field(default_factory=PassReport)

    def __post_init__(self) -> None:
        self.tracker = Tracker(self.graph)
        self.evaluator = Evaluator(self.graph.opset)

    def over(self, owner: ir.Graph) -> None:
        for node in owner:
            self.visit(node)

    def visit(self, node: Node) -> None:
        if node.domain == "":
            if node.op_type == "If" and self.decide(node):
                return
            if node.op_type == "CastLike" and self.cast(node):
                return
            if self.fold_all(node) or self.fold_shape(node):
                return
        for attr in node.attributes.values():
            for body in bodies(attr):
                self.over(body)

    def decide(self, node: Node) -> bool:
        """Inline the branch of an If whose condition is known."""
        condition = self.graph.array(node.inputs[0])
        if condition is None or condition.size != 1:
            return False
        taken = "then_branch" if condition.reshape(-1)[0] else "else_branch"
        self.report.did(f"If {node.name} always takes its {taken}")
        for inner in inline_branch(self.graph, node, node.attributes[taken].as_graph()):
            self.visit(inner)
        return True

    def cast(self, node: Node) -> bool:
        """Turn a CastLike of a constant into a Cast, since only a type is asked of its model."""
        source, like = node.inputs[0], node.inputs[1]
        if source is None or like is None or like.dtype is None or not self.constant(source):
            return False
        to = ir.AttrInt64("to", int(like.dtype))
        attributes: dict[str, ir.Attr] = {"to": to, **node.attributes}
        new = self.graph.insert(
            "Cast", [source], before=node, attributes=attributes, like=node.outputs[0]
        )
        self.report.did(f"CastLike {node.name} is a Cast")
        self.graph.replace(node.outputs[0], new.outputs[0])
        self.graph.remove(node)
        self.visit(new)
        return True

    def fold_all(self, node: Node) -> bool:
        """Fold a node all of whose inputs are constants."""
        if not node.inputs or not all(v is None or self.constant(v) for v in node.inputs):
            return False
        if node.op_type == "Identity":
            return self.bypass(node)
        inputs = [self.graph.tensor(value) for value in node.inputs]
        if any(t is not None and t.dtype not in FOLDABLE for t in inputs):
            return False
        if not self.affordable(node, inputs):
            return False
        arrays = [None if tensor is None else tensor.numpy() for tensor in inputs]
        try:
            results = self.evaluator.run(node, arrays)
        except Exception as error:  # noqa: BLE001 - an operator used wrongly must not end a compile
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.report.refuse(node.name or "", f"can't be evaluated: {lines[0]}")
            return False
        if not all(map(_as_declared, node.outputs, results)):
            self.report.refuse(node.name or "", "the result is not of the declared type")
            return False
        self.replace(node, results)
        return True

    def bypass(self, node: Node) -> bool:
        """Let readers of an Identity read the constant itself."""
        source = node.inputs[0]
        if source is None or not replaceable(node.outputs[0], source):
            return False
        self.graph.replace(node.outputs[0], source)
        self.graph.remove(node)
        self.report.did(f"Identity {node.name}")
        return True

    def constant(self, value: Value) -> bool:
        if value.producer() is None:
            return value.is_initializer() and not value.is_graph_input()
        return self.graph.is_constant(value)

    def affordable(self, node: Node, inputs: list[ir.TensorProtocol | None]) -> bool:
        try:
            size = result_bytes(node, inputs)
        except (TooLargeError, ValueError, TypeError, IndexError) as error:
            self.report.refuse(node.name or "", f"has a result of unknown size: {error}")
            return False
        if size is None:
            return False
        had = sum(tensor.nbytes for tensor in inputs if tensor is not None)
        if size > had + self.max_bytes:
            self.report.refuse(
                node.name or "",
                f"{node.op_type} makes {size} bytes of {had}, over fold_constants.max_bytes = "
                f"{self.max_bytes}",
            )
            return False
        return True

    def fold_shape(self, node: Node) -> bool:
        """Fold a node whose result consists of known dimensions, or the shape of a Reshape."""
        if node.op_type == "Reshape":
            self.fold_target(node)
        known = self.tracker.visit(node)
        if known is None or not known.complete or node.op_type == "Identity":
            return False
        array = known.array()
        if not _as_declared(node.outputs[0], array):
            return False
        self.replace(node, [array])
        return True

    def fold_target(self, node: Node) -> None:
        """Make the target of a Reshape constant where all but one element are settled."""
        target = node.inputs[1] if len(node.inputs) > 1 else None
        known = self.tracker.get(target)
        if target is None or known is None or known.scalar or self.constant(target):
            return
        own = dims(self.graph, node.inputs[0]) or ()
        copies = not Graph.attribute(node, "allowzero", 0)
        shape: list[int] = []
        for axis, element in enumerate(known.elements):
            if isinstance(element, int):
                shape.append(element)
                continue
            same = isinstance(element, Dim) and axis < len(own) and own[axis] == element
            shape.append(0 if copies and same else -1)
        settled = [element for element in known.elements if isinstance(element, int)]
        if shape.count(-1) > 1 or 0 in settled or min(settled, default=1) < -1:
            return
        constant = self.graph.constant(f"{target.name}_const", np.array(shape, np.int64))
        self.graph.set_input(node, 1, constant)
        self.report.did(f"shape of Reshape {node.name} is {shape}")

    def replace(self, node: Node, results: list[NDArray[Any]]) -> None:
        for out, array in zip(node.outputs, results, strict=True):
            if out.uses() or out.is_graph_output():
                constant = self.graph.constant(f"{out.name}_const", array)
                self.graph.replace(out, constant)
        self.report.did(f"{node.op_type} {node.name}")
        self.graph.remove(node)


def _as_declared(value: Value, array: NDArray[Any]) -> bool:
    try:
        dtype = ir.DataType.from_numpy(array.dtype)
    except (TypeError, ValueError):
        return False
    return dtype in FOLDABLE and value.dtype in (None, dtype)
