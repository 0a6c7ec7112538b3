"""Decides which nodes compute in half precision: ranges, exclusions, and neighbours."""

from fnmatch import fnmatchcase
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.graph import Graph, Node, Value
from qgraph.passes.collect import extremes, sample_count
from qgraph.passes.half_types import MOVEMENT, Slots, in_quantized_unit, slots
from qgraph.pipeline import PassReport

# Inputs that are only added to sums of products, where a tiny value may vanish. An Add of its own
# is not among them: its tiny operand is an epsilon that keeps a division from dividing by zero.
ADDED = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "BatchNormalization": (2, 3),
    "LayerNormalization": (2,),
    "InstanceNormalization": (2,),
    "GroupNormalization": (2,),
}

# Inputs that codes are multiplied by. A scale may be a subnormal number, as long as it keeps its
# value: other tensors that small are judged by what computing with them would lose.
SCALES = {"DequantizeLinear": (1,), "QuantizeLinear": (1,), "MatMulNBits": (2,)}
# Rounding may move scales by this share of their norm: much less than codes of 8 bits round by.
SCALE_ERROR = 2.0**-9

HALF = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


class Limits:
    """What a half type can hold.

    Attributes:
        dtype: Its name.
        largest: Largest finite number.
        smallest: Smallest normal number.
    """

    def __init__(self, dtype: str) -> None:
        """Look the numbers up."""
        info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self.largest, self.smallest = float(info.max), float(info.smallest_normal)

    def misfit(self, array: NDArray[Any]) -> str | None:
        """Say why a constant does not fit, or None; infinities and NaN fit any float type."""
        low, high = float(array.min(initial=0.0)), float(array.max(initial=0.0))
        if not (np.isfinite(low) and np.isfinite(high)):
            finite = array[np.isfinite(array)]
            low, high = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
        return self.magnitude(max(-low, high))

    def magnitude(self, greatest: float, headroom: float = 1.0) -> str | None:
        """Say why a tensor whose largest magnitude is `greatest` does not fit, or None."""
        if not greatest * headroom <= self.largest:
            times = f" times {headroom:g}" if headroom != 1 else ""
            return f"reaches {greatest:.4g},{times} more than {self.dtype}'s {self.largest:.6g}"
        if 0 < greatest < self.smallest:
            return (
                f"is at most {greatest:.2g}, "
                f"below {self.dtype}'s smallest normal number {self.smallest:.2g}"
            )
        return None


class Chooser:
    """Decides which nodes compute in half.

    Attributes:
        half: Those nodes, with their convertible inputs and outputs.
        reasons: Why other nodes with float32 values stay in float32.
        follows: The same for nodes that compute nothing and go by their neighbours.
        report: Refusals and warnings.
    """

    def __init__(
        self,
        graph: Graph,
        context: Context,
        limits: Limits,
        headroom: float,
        without: frozenset[str],
    ) -> None:
        """Take the question; `without` are operators that the target lacks in half."""
        self.graph, self.context = graph, context
        self.limits, self.headroom, self.without = limits, headroom, without
        self.half: dict[Node, Slots] = {}
        self.reasons: dict[Node, str] = {}
        self.follows: dict[Node, str] = {}
        self.report = PassReport()
        self._constants: dict[Value, str | None] = {}

    def choose(self, results: bool = True) -> None:
        """Fill in `half`, `reasons`, `follows` and `report`; the graph stays as it is.

        Args:
            results: Whether the ranges of results are looked at, and not only those of constants.
        """
        candidates: dict[Node, Slots] = {}
        for node in self.graph.nodes():
            if node.op_type == "Constant":
                continue
            found = self._candidate(node)
            if isinstance(found, str):
                self.reasons[node] = found
            elif found:
                candidates[node] = found
        misfits = self._results(candidates) if results else {}
        for node, found in candidates.items():
            reason = self._misfit(node, found, misfits)
            if reason is not None:
                self.reasons[node] = reason
            else:
                self.half[node] = found
        self._settle_movement()
        self._settle_takers()

    def _candidate(self, node: Node) -> Slots | str:
        for pattern in self.context.exclude:
            if fnmatchcase(node.name or "", pattern) or fnmatchcase(node.op_type, pattern):
                return f"excluded by {pattern!r}"
        codes = self.context.target is not None and self.context.target.half_codes
        found = slots(self.graph, node, HALF[self.limits.dtype], codes)
        if isinstance(found, str) or not found:
            return found
        if node.op_type in self.without:
            return f"target {self.context.target.name} has no {self.limits.dtype} {node.op_type}"
        if not codes and in_quantized_unit(self.graph, node):
            return "an engine may run it in integers, with the quantized values around it"
        return found

    # -- ranges ----------------------------------------------------------------------------------

    def _results(self, candidates: dict[Node, Slots]) -> dict[Value, str]:
        """Observe everything that would be computed in half; return what does not fit, and why."""
        values: dict[str, Value] = {}
        for node, found in candidates.items():
            members = [node.inputs[i] for i in found.inputs] + [
                node.outputs[i] for i in found.outputs
            ]
            for value in members:
                if value is not None and value.name and self._observable(value):
                    values[value.name] = value
        if not values:
            return {}
        if self.context.data is None:
            if self.limits.dtype == "float16":
                self.report.warnings.append(
                    "no calibration data: only constants were checked for overflow in float16"
                )
            return {}
        greatest = dict.fromkeys(values, 0.0)
        data = self.context.data
        total = sample_count(data)
        samples = extremes(self.graph, list(values), data, infinite=True)
        for done, sample in enumerate(samples):
            for name, (low, high) in sample.items():
                greatest[name] = max(greatest[name], abs(low), abs(high))
            self.context.progress("checking ranges", done + 1, total)
        found_misfits = {}
        for name, size in greatest.items():
            reason = self.limits.magnitude(size, self.headroom)
            if reason is not None:
                found_misfits[values[name]] = reason
        return found_misfits

    def _observable(self, value: Value) -> bool:
        """Whether calibration sees it: no constant, and no input that callers may leave out."""
        return not (
            self.graph.is_constant(value)
            or value.is_initializer()
            or value.name in self.graph.sparse
        )

    def _misfit(self, node: Node, found: Slots, misfits: dict[Value, str]) -> str | None:
        for index in sorted(found.inputs):
            value = node.inputs[index]
            assert value is not None
            reason = misfits.get(value) or self._constant_misfit(value)
            if reason is None:
                continue
            added = index in ADDED.get(node.op_type, ()) and self._vanishes(value)
            scale = index in SCALES.get(node.op_type, ()) and self._keeps(value)
            if not (added or scale):
                return f"its input {value.name!r} {reason}"
        for index in sorted(found.outputs):
            reason = misfits.get(node.outputs[index])
            if reason is not None:
                return f"its result {node.outputs[index].name!r} {reason}"
        return None

    def _constant_misfit(self, value: Value) -> str | None:
        if value not in self._constants:
            array = self.graph.array(value)
            self._constants[value] = None if array is None else self.limits.misfit(array)
        return self._constants[value]

    def _vanishes(self, value: Value) -> bool:
        """Whether a constant misfits by being small, not by being large."""
        array = self.graph.array(value)
        return array is not None and bool(np.all(np.abs(array) < self.limits.smallest))

    def _keeps(self, value: Value) -> bool:
        """Whether a constant, rounded to half, is nearly what it was."""
        array = self.graph.array(value)
        if array is None:
            return False
        with np.errstate(over="ignore"):
            rounded = array.astype(HALF[self.limits.dtype].numpy()).astype(np.float64)
        moved = np.linalg.norm(rounded - array)
        return bool(moved <= SCALE_ERROR * np.linalg.norm(array.astype(np.float64)))

    # -- nodes whose type is their neighbours' affair --------------------------------------------

    def _settle_movement(self) -> None:
        """Give back nodes that move data between float32 nodes only: Casts would be all they win.

        Connected ones decide together, by whether any of them touches a node that computes.
        """
        moving = [n for n in self.half if n.op_type in MOVEMENT and self.half[n].outputs]
        seen: set[Node] = set()
        for start in moving:
            if start in seen:
                continue
            group, touches, todo = [], False, [start]
            seen.add(start)
            while todo:
                node = todo.pop()
                group.append(node)
                for other in self._neighbours(node):
                    if other.op_type not in MOVEMENT:
                        touches = True
                    elif other not in seen:
                        seen.add(other)
                        todo.append(other)
            if not touches:
                for node in group:
                    del self.half[node]
                    self.follows[node] = "moves data between float32 nodes only"

    def _neighbours(self, node: Node) -> list[Node]:
        """Nodes that would hand it, or take from it, values in half."""
        found = self.half[node]
        result = []
        for index in found.inputs:
            value = node.inputs[index]
            producer = None if value is None else value.producer()
            if producer in self.half and self._native(value):
                result.append(producer)
        for index in found.outputs:
            for use in node.outputs[index].uses():
                slot = self.half.get(use.node)
                if slot is not None and use.idx in slot.inputs and slot.outputs:
                    result.append(use.node)
        return result

    def _settle_takers(self) -> None:
        """Let nodes without float results (Shape, ArgMax, Greater) take what their inputs are."""
        for node in [n for n, found in self.half.items() if not found.outputs]:
            inputs = [node.inputs[i] for i in self.half[node].inputs]
            computed = [v for v in inputs if not self.graph.is_constant(v)]
            if not computed or not all(map(self._native, computed)):
                del self.half[node]
                self.follows[node] = "reads float32 values and gives no float"

    def _native(self, value: Value | None) -> bool:
        """Whether `value` leaves its producer in half."""
        producer = None if value is None else value.producer()
        found = self.half.get(producer) if producer is not None else None
        if producer is None or found is None:
            return False
        return any(producer.outputs[i] is value for i in found.outputs)
