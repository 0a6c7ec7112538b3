"""Asymmetric activations become symmetric int8: zero point 0."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.encoding import INTEGERS
from qgraph.graph import Graph, Node
from qgraph.passes.rewrites._bounds import Bounds, clip, clip_refusal
from qgraph.passes.rewrites._qdq import (
    Constants,
    Parameters,
    Region,
    is_symmetric,
    label,
    moves,
    parameters,
    put,
    region,
)
from qgraph.pipeline import Pass, PassReport

_LOWEST, _HIGHEST, _ = INTEGERS["int8"]


@dataclass(frozen=True)
class SymmetricActivations(Pass):
    """Turn asymmetric int8 and uint8 activations into int8 with zero point 0.

    Before:
        q = QuantizeLinear(x, scale, zero_point)        # uint8, or int8 with a zero point
        y = DequantizeLinear(q, scale, zero_point)

    After:
        c = Clip(x, low)                                # or Relu, where low is 0
        q = QuantizeLinear(c, scale', 0)                # int8
        y = DequantizeLinear(q, scale', 0)

        where [low, high] is what the old codes can represent, and scale' the smallest with which
        the new ones represent both ends: max(-low / 128, high / 127).

    When:
        A QuantizeLinear whose codes only DequantizeLinear nodes with the same zero point read.
        One scale per tensor, or one a channel.

    Leaves alone:
        Codes that are a graph output, or that other operators read; computed parameters; 4-bit
        and 16-bit codes.

    Numerics:
        Rounding. An activation moves by at most half the old step plus half the new one, whatever
        it is: values that the old codes cut off are cut off before, by the Clip. Exact where the
        codes only shift, as uint8 with zero point 128. The report gives every bound.

    Source:
        https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html. TensorRT takes zero point 0 only
        (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html).

    Attributes:
        clip: Put the Clip in front. Without it a value outside of the old range keeps its sign
            and size, which is not what the model computed where the range stood for a Relu.
    """

    clip: bool = True

    name: ClassVar[str] = "symmetric_activations"
    numerics = "rounding"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite every activation."""
        report = PassReport()
        constants = Constants(graph)
        for node in list(graph.walk()):
            if graph.is_standard(node, "QuantizeLinear"):
                self._activation(constants, node, report)
        if report.changed:
            graph.drop_unread_initializers()
        return report

    def _activation(self, constants: Constants, node: Node, report: PassReport) -> None:
        graph = constants.graph
        own = parameters(graph, node)
        if isinstance(own, str) or is_symmetric(own):
            if isinstance(own, str):
                report.refuse(label(node), own)
            return
        found = region(graph, node)
        if isinstance(found, str):
            report.refuse(label(node), found)
            return
        bounds = Bounds.of(own)
        sides = bounds.inside(_symmetric_bounds(own)) if self.clip else (False, False)
        reason = _refusal(own) or (clip_refusal(graph, node, bounds) if any(sides) else None)
        if reason is not None:
            report.refuse(label(node), reason)
            return
        clip(constants, node, bounds, sides)
        report.did(_rewrite(constants, found))


def symmetric_scale(old: Parameters) -> NDArray[Any]:
    """Return the smallest scale, in its own type, with which int8 covers the old codes' range."""
    bounds = Bounds.of(old)
    wanted = np.maximum(bounds.low / _LOWEST, bounds.high / _HIGHEST)
    with np.errstate(over="ignore"):
        scale: NDArray[Any] = wanted.astype(old.scale.dtype)
        # Rounded down it would miss an end by a part of a step.
        up = np.nextafter(scale, np.array(np.inf, old.scale.dtype))
    return np.where(scale.astype(np.float64) < wanted, up, scale)


def _symmetric_bounds(old: Parameters) -> Bounds:
    scale = symmetric_scale(old)
    zero = np.zeros(scale.shape, np.int64)
    return Bounds.of(replace(old, dtype="int8", scale=scale, zero_point=zero))


def _rewrite(constants: Constants, found: Region) -> str:
    """Change parameters of Q and DQ, and return the line for the report."""
    node, old = found.quantizer, found.parameters
    scale = symmetric_scale(old)
    ratio = scale.astype(np.float64) / old.scale.astype(np.float64)
    hint = node.outputs[0].name or "codes"
    worst = 0.0
    for each, before in ((node, old), *found.readers):
        after = scale if before is old else before.scaled(ratio).scale
        if np.array_equal(before.scale, old.scale):
            after = scale
        zero = np.zeros(before.scale.shape, np.int64)
        new = replace(before, dtype="int8", scale=after.astype(before.scale.dtype), zero_point=zero)
        put(constants, each, new, hint)
        if each is not node or not found.readers:
            worst = max(worst, _bound(before, new))
    return f"{label(node)}: {_change(old, scale)}; {moves(worst)}"


def _bound(old: Parameters, new: Parameters) -> float:
    """Return how far an activation can move, at most."""
    before, after = old.scale.astype(np.float64), new.scale.astype(np.float64)
    middle = 0 if old.dtype == "int8" else -_LOWEST
    shifted = (old.zero_point == middle) & (before == after)
    return float(np.where(shifted, 0.0, (before + after) / 2).max(initial=0.0))


def _change(old: Parameters, scale: NDArray[Any]) -> str:
    if old.scale.size != 1:
        return f"{old.dtype} with zero points to symmetric int8, {old.scale.size} channels"
    step = float(old.scale.reshape(())), float(scale.reshape(()))
    return f"{old.dtype} with zero point {int(old.zero_point.reshape(()))} to symmetric int8, " + (
        f"step {step[0]:.4g} to {step[1]:.4g}"
    )


def _refusal(old: Parameters) -> str | None:
    if old.dtype not in ("int8", "uint8"):
        return f"its codes are {old.dtype}"
    if old.block:
        return "an activation with a scale a block"
    if not (old.scale.astype(np.float64) > 0).all():
        return "a scale is not positive"
    return None
