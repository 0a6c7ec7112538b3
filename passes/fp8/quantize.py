"""Weights and activations of matrix products in float8e4m3fn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import DataError, UsageError
from qgraph.facts import Plan
from qgraph.graph import Graph, Value
from qgraph.passes.collect import extremes, sample_count
from qgraph.passes.collect_rows import channel_rows
from qgraph.passes.fp8.divide import divide, places
from qgraph.passes.fp8.groups import Group, Wishes, find_groups, rows_of
from qgraph.passes.fp8.scales import DTYPE, needs_scale
from qgraph.passes.fp8.write import Rounded, write_group
from qgraph.pipeline import Pass, PassReport

# From this opset on DequantizeLinear takes float8.
_SINCE = 19


@dataclass(frozen=True)
class Fp8(Pass):
    """Round both operands of matrix products by constants to float8e4m3fn.

    What it writes is plain ONNX, which every engine computes alike; the target's kernel takes its
    place at the end (`gemm_float8`).

    Before:
        y = MatMul(x, W)

    After:
        codes = Cast <to = FLOAT8E4M3FN> (x)            # once for all that multiply x
        w = Transpose(DequantizeLinear(W_codes, scale)) # W_codes float8e4m3fn [N, K]
        y = MatMul(Cast <to = FLOAT> (codes), w)

    A cast is all that an activation costs at run time. Where its values leave the range of the
    codes on the data, or much of them lies below it, they are divided by a power of two, which
    changes no other digit: in the norm or the products that compute them, or, where something else
    reads them too or a function such as Gelu is between, in a Mul of its own. Weights have one scale, a power of two as
    well, so that DequantizeLinear is exact in every type; the activations' one goes into it.

    When:
        MatMul by a constant [K, N] with K and N multiples of the target's; data. `linear_to_matmul`
        makes MatMuls of other linear layers.

    Leaves alone:
        Excluded nodes; the layer that makes a graph output, unless `head`; small weights; bodies of
        If, Loop and Scan; products that the target's measured times say are slower so, where the
        shapes or `batch` give the number of rows.

    Numerics:
        Rounding, of activations and weights, to 4 binary digits.

    Source:
        Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv 2209.05433;
        https://onnx.ai/onnx/technical/float8.html.

    Attributes:
        batch: Rows multiplied at a time (sequences times tokens), where shapes are dynamic.
        costs: Leave products in float that the measured times say are faster so.
        head: Products that make a graph output too.
        leave: Globs of names of products that stay in the target's float type. (`exclude` leaves
            nodes in float32.)
        min_elements: Smaller weights stay in float.
        headroom: How many times larger than on the calibration data activations may get before
            they are clipped.
        tolerance: By what share the squared error of a cast alone may exceed that of scaled values.
    """

    batch: Annotated[int, Field(ge=1)] | None = None
    costs: bool = True
    head: bool = False
    leave: tuple[str, ...] = ()
    min_elements: Annotated[int, Field(ge=1)] = 4096
    headroom: Annotated[float, Field(ge=1)] = 2.0
    tolerance: Annotated[float, Field(ge=0)] = 0.1

    name: ClassVar[str] = "fp8"
    gives: ClassVar[frozenset[str]] = frozenset({"plan", "quantized"})
    breaks: ClassVar[frozenset[str]] = frozenset({"units", "attention"})
    numerics = "rounding"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite the graph; `facts.plan.nodes` tells each node's precision and reason.

        Raises:
            UsageError: The target has no float8 kernel.
            DataError: There is no data, or it makes a value NaN or infinite.
        """
        rules = None if context.target is None else context.target.float8
        if rules is None:
            raise UsageError("fp8 needs a target with a float8 kernel", fix="use target cuda")
        if context.data is None:
            raise DataError("fp8 needs calibration data", fix="pass --data")
        graph.name_nodes()
        if any(out.dtype is None for node in graph.nodes() for out in node.outputs):
            onnx_io.infer_shapes(graph)
        report = PassReport()
        against = context.target.float_type or "fp32"
        wishes = Wishes(
            context.exclude,
            self.leave,
            self.head,
            self.min_elements,
            self.batch,
            self.costs,
            against,
        )
        groups, refused = find_groups(graph, rules, wishes)
        if graph.opset < _SINCE and groups:
            reason = f"float8 needs opset {_SINCE}, the model has {graph.opset}"
            refused |= {node.name or "": reason for group in groups for node in group.nodes}
            groups = []
        plan = Plan(
            nodes={n.name or "": ("float", f"{n.op_type} stays in float") for n in graph.walk()}
        )
        for name, reason in refused.items():
            plan.nodes[name] = ("float", reason)
            report.refuse(name, reason)
        scales = self._scales(graph, groups, context)
        # All divisions come before any rounding: they change weights that are rounded too.
        hows = [_divide_input(graph, *each) for each in zip(groups, scales, strict=True)]
        weights: dict[tuple[Value, float], Rounded] = {}
        for done, (group, scale, how) in enumerate(zip(groups, scales, hows, strict=True)):
            written = write_group(graph, group, scale, weights)
            for name, weight in written.items():
                plan.nodes[name] = ("fp8", f"both operands in {DTYPE}; input: {how}")
                report.did(
                    f"{name}: input {how}, weight scale {weight.scale:g}, "
                    f"its relative squared error {weight.loss:.2g}"
                )
                report.layers.append(
                    {
                        "name": name,
                        "type": DTYPE,
                        "input": how,
                        "input_scale": scale,
                        "weight_scale": weight.scale,
                        "error": weight.loss,
                    }
                )
            context.progress("rounding to float8", done + 1, len(groups))
        if groups and self.costs and rules.costs:
            report.notes += _undecided(graph, groups, self.batch)
        graph.drop_unread_initializers()
        graph.facts.plan, graph.facts.quantized = plan, True
        return report

    def _scales(self, graph: Graph, groups: Sequence[Group], context: Context) -> list[float]:
        """By what the input of each group is divided."""
        assert context.data is not None
        names = [group.data.name or "" for group in groups]
        if not names:
            return []
        largest = dict.fromkeys(names, 0.0)
        total = sample_count(context.data)
        for done, sample in enumerate(extremes(graph, names, context.data)):
            for name, found in sample.items():
                largest[name] = max(largest[name], float(np.abs(found).max()))
            context.progress("looking for the largest values", done + 1, total)
        rows = channel_rows(graph, names, context, "choosing scales")
        empty = np.zeros((0, 1), np.float32)
        return [
            needs_scale(
                rows.get(name, empty),
                largest[name],
                headroom=self.headroom,
                tolerance=self.tolerance,
            )
            for name in names
        ]


def _divide_input(graph: Graph, group: Group, scale: float) -> str:
    """Divide a group's input; return how."""
    if scale == 1:
        return "a cast alone"
    found = places(graph, group.data, group.nodes)
    if found is not None:
        divide(graph, found, scale)
        names = dict.fromkeys(node.name or node.op_type for node, _ in found)
        return f"divided by {scale:g} in {', '.join(names)}"
    factor = graph.constant(f"{group.data.name}_inverse_scale", np.array(1 / scale, np.float32))
    first, inputs = group.nodes[0], [group.data, factor]
    hint = f"{first.name}_scale"
    mul = graph.insert("Mul", inputs, before=first, like=group.data, name=hint)
    for node in group.nodes:
        graph.set_input(node, 0, mul.outputs[0])
    return f"divided by {scale:g} in a Mul"


def _undecided(graph: Graph, groups: Sequence[Group], batch: int | None) -> list[str]:
    """Say where measured times had no say."""
    count = sum(len(g.nodes) for g in groups if rows_of(graph, g.data, batch) is None)
    if not count:
        return []
    return [f"{count} products have an unknown number of rows: --batch lets measured times decide"]
