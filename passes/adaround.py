"""Chooses for each planned weight whether it rounds up or down, by what its layer computes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qgraph.context import Context
from qgraph.encoding import Spec, expand
from qgraph.facts import Plan, QuantizedWeight
from qgraph.graph import Graph, Node
from qgraph.passes.collect_gram import Gram, Wanted, collect_grams
from qgraph.passes.collect_values import rereadable
from qgraph.passes.correct_bias import is_correctable
from qgraph.passes.equalize_depthwise import ONE_PASS
from qgraph.passes.layer_rows import from_matrix, layout, to_matrix, weight_shape
from qgraph.passes.placement.layers import weight_axis
from qgraph.passes.weights.adaround import column_losses, round_adaptively
from qgraph.pipeline import Pass, PassReport

Floats = NDArray[np.float64]


@dataclass(eq=False)
class _Shared:
    """A quantized weight and the layers that have it.

    Attributes:
        weight: As it is quantized now.
        spec: What was planned for it.
        nodes: The layers.
    """

    weight: QuantizedWeight
    spec: Spec
    nodes: list[Node]


@dataclass(frozen=True)
class AdaRound(Pass):
    """Round each planned weight up or down so that its layer's own result errs least.

    For each layer, rows of its float input are drawn from calibration data and summed up to a Gram
    matrix, which is all that the error of a linear layer depends on; then roundings are sought
    that make the error small. Scales stay as they are.

    The error's mean is left out where `correct_bias` is on, which will take it out. Left out are
    also the quantization of the input (rounding so as to make good for the errors of the layers
    before made whole models worse) and what a Relu or Clip behind the layer cuts off (worth
    nothing); docs/accuracy.md has the numbers.

    When:
        Conv, Gemm and MatMul with a planned weight; data that can be read again.

    Leaves alone:
        ConvTranspose; layers whose Gram matrix does not fit into memory, whose input was empty
        in every sample, or for which nothing better than the nearest codes is found.

    Source:
        Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", with
        another solver: see `qgraph.passes.weights.adaround`.

    Attributes:
        enabled: Whether to do it.
        rows: How many rows of each layer's input to look at; at least twice a row's length.
        samples: How many samples they are drawn from at most.
        damping: Share of the Gram matrix's mean diagonal added to its diagonal.
        memory_mb: Memory beside the model for observed values and Gram matrices, MB. Where they
            take more, layers are done in several runs over the data.
    """

    enabled: bool = False
    rows: Annotated[int, Field(ge=1)] = 4096
    samples: Annotated[int, Field(ge=1)] = 128
    damping: Annotated[float, Field(gt=0)] = 0.01
    memory_mb: Annotated[int, Field(ge=1)] = 1024

    name: ClassVar[str] = "adaround"
    needs: ClassVar[frozenset[str]] = frozenset({"plan", "weights"})
    gives: ClassVar[frozenset[str]] = frozenset({"weights"})
    numerics = "rounding"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite `facts.weights`.

        Raises:
            DataError: There is no data, or it makes a layer's input NaN or infinite.
        """
        report = PassReport()
        if not self.enabled:
            return report
        shared = self._shared(graph, report)
        if shared and context.data is not None and not rereadable(context.data):
            report.warnings.append(f"skipped: {ONE_PASS}")
            return report
        centred = _bias_is_corrected(context)
        found: dict[tuple[str, int], QuantizedWeight] = dict(graph.facts.get("weights"))
        done = 0
        for block in _blocks(graph, shared, self.memory_mb << 19):
            for each, gram in self._grams(graph, block, context, centred):
                weight = self._solve(graph, each, gram, report)
                found.update({(node.name or "", 1): weight for node in each.nodes})
                done += 1
                context.progress("rounding weights", done, len(shared))
        graph.facts.weights = found
        return report

    def _shared(self, graph: Graph, report: PassReport) -> list[_Shared]:
        """Every weight with its layers; why not, for the layers left alone."""
        plan: Plan = graph.facts.get("plan")
        weights: dict[tuple[str, int], QuantizedWeight] = graph.facts.get("weights")
        found: dict[object, _Shared] = {}
        for node in graph.nodes("Conv", "ConvTranspose", "Gemm", "MatMul"):
            key = (node.name or "", 1)
            if key not in weights:
                continue
            if node.op_type == "ConvTranspose":
                report.refuse(key[0], "not done for ConvTranspose")
            elif _wanted(graph, node).nbytes > self.memory_mb << 19:
                size = -(-_wanted(graph, node).nbytes >> 19)
                report.refuse(key[0], f"its Gram matrix needs adaround.memory_mb={size}")
            else:
                weight = weights[key]
                first = _Shared(weight, plan.weights[key].spec, [])
                # Convolutions may share a weight and cut it into different groups.
                form = (id(weight), weight_shape(graph, node))
                found.setdefault(form, first).nodes.append(node)
        return list(found.values())

    def _grams(
        self, graph: Graph, block: list[_Shared], context: Context, centred: bool
    ) -> Iterator[tuple[_Shared, Floats | None]]:
        """Yield each weight of a block with its Gram matrix; None where there was no input."""
        # Layers with the same input, as queries, keys and values, share its sums.
        wanted = list(dict.fromkeys(_wanted(graph, node) for each in block for node in each.nodes))
        grams = collect_grams(
            graph,
            wanted,
            context,
            rows=self.rows,
            samples=self.samples,
            memory=self.memory_mb << 19,
            label="observing layers",
        )
        found = dict(zip(wanted, grams, strict=True))
        for each in block:
            seen = [(found[_wanted(graph, node)], node) for node in each.nodes]
            yield each, _sum(graph, [(gram, node) for gram, node in seen if gram.rows], centred)

    def _solve(
        self, graph: Graph, each: _Shared, gram: Floats | None, report: PassReport
    ) -> QuantizedWeight:
        old, node = each.weight, each.nodes[0]
        name, axis = node.name or "", weight_axis(node)
        weight = graph.array(node.inputs[1])
        assert weight is not None
        if gram is None:
            report.refuse(name, "its input was empty in every sample")
            return old
        groups = len(gram)
        exact = to_matrix(weight, axis, groups).astype(np.float64)
        codes = to_matrix(old.codes, axis, groups).astype(np.int64)
        block, shape = old.encoding.block, weight.shape
        steps = expand(old.encoding.scale.astype(np.float64), block, shape)
        zeros = expand(old.encoding.zero_point, block, shape)
        scale = to_matrix(np.broadcast_to(steps, shape), axis, groups)
        zero = to_matrix(np.broadcast_to(zeros, shape), axis, groups)
        new = round_adaptively(
            exact, codes, scale, zero, each.spec.codes(), gram, damping=self.damping
        )
        before, after = (
            float(column_losses((some - zero) * scale - exact, gram).sum()) for some in (codes, new)
        )
        if np.array_equal(codes, new):
            report.refuse(name, "nothing better than the nearest codes was found")
            return old
        flipped = float((codes != new).mean())
        report.did(f"{name}: error of the result x {after / before:.3f}, {flipped:.0%} changed")
        size = float(column_losses(exact, gram).sum())
        back = from_matrix(new, weight.shape, axis).astype(old.codes.dtype)
        return replace(old, codes=back, loss=after / size if size > 0 else 0.0)


def _blocks(graph: Graph, shared: list[_Shared], memory: int) -> Iterator[list[_Shared]]:
    """Cut the weights, in their order, into blocks whose Gram matrices fit into `memory`."""
    block: list[_Shared] = []
    room = memory
    for each in shared:
        size = sum(_wanted(graph, node).nbytes for node in each.nodes)
        if block and size > room:
            yield block
            block, room = [], memory
        block.append(each)
        room -= size
    if block:
        yield block


def _wanted(graph: Graph, node: Node) -> Wanted:
    data = node.inputs[0]
    assert data is not None
    _, size, _ = weight_shape(graph, node)
    return Wanted(data.name or "", layout(graph, node), size)


def _sum(graph: Graph, seen: list[tuple[Gram, Node]], centred: bool) -> Floats | None:
    """Sum of the Gram matrices of the layers that share a weight."""
    parts = [gram.matrix(centred=centred and is_correctable(graph, node)) for gram, node in seen]
    return np.sum(parts, axis=0) if parts else None


def _bias_is_corrected(context: Context) -> bool:
    """Whether the recipe switches `correct_bias` on, which takes mean errors out."""
    options = {} if context.recipe is None else context.recipe.passes.get("correct_bias", {})
    return bool(options.get("enabled", False))
