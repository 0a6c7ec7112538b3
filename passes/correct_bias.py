"""Takes the systematic part of each layer's quantization error out through its bias."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.encoding import Encoding, Spec, dequantize
from qgraph.facts import Placement, Plan, QuantizedWeight
from qgraph.graph import Graph, Node, Value
from qgraph.passes.collect_channels import channel_statistics, rereadable
from qgraph.passes.equalize_depthwise import ONE_PASS
from qgraph.passes.fusions._constants import FloatArray, constant, folded
from qgraph.passes.layer_twins import with_twins
from qgraph.passes.plan import weight_axis
from qgraph.passes.quantize_weights import BIAS_LIMIT
from qgraph.pipeline import Pass, PassReport, Reject
from qgraph.target import Target


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer and where its bias stands.

    Attributes:
        node: Conv, Gemm or MatMul with a quantized weight.
        holder: The node that adds the bias: itself, or the Add behind a MatMul.
        index: Which of the holder's inputs it is.
        channels: Number of output channels.
        axis: Their axis in the result.
    """

    node: Node
    holder: Node
    index: int
    channels: int
    axis: int

    @property
    def bias(self) -> Value | None:
        """The bias, None where there is none yet."""
        inputs = self.holder.inputs
        return inputs[self.index] if self.index < len(inputs) else None


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Add to each quantized layer's bias what its results lack on average.

    For each layer and calibration sample, the mean over each output channel is taken of the float
    result and of the result with quantized input and weight, of the same float input. The
    correction is the median (or mean) over the samples of their difference. Since each layer is
    fed with float values, its own error alone is seen: all layers are measured in one run, and no
    layer corrects what those before it already have. (Were each measured behind the uncorrected
    ones before it, every layer would correct the same shift again and the sum would explode.)

    With `analytic`, the correction is the weight error times the mean input of each channel: no
    twin has to run, but the error of the input's rounding and clipping is not seen.

    When:
        Conv, Gemm or MatMul with a planned weight and input. The bias is input 2 of Conv and
        Gemm, added where there is none, or the Add of a constant behind a MatMul.

    Leaves alone:
        A MatMul without an Add; results of unknown rank; corrections that int32 can't hold,
        where the target's biases are int32.

    Source:
        Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
        Correction", section 4.2 and appendix D; the median is ours: a few images with outliers
        carry the mean away.

    Attributes:
        enabled: Whether to do it.
        statistic: `median` or `mean` over samples of what was measured, or `analytic`.
    """

    enabled: bool = False
    statistic: Literal["median", "mean", "analytic"] = "median"

    name: ClassVar[str] = "correct_bias"
    needs: ClassVar[frozenset[str]] = frozenset({"plan", "encodings", "weights"})
    numerics = "rounding"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Change the biases in place.

        Raises:
            DataError: There is no data, or it makes a result NaN or infinite.
        """
        report = PassReport()
        if not self.enabled:
            return report
        layers = _layers(graph, report)
        if layers and not rereadable(context.data):
            report.warnings.append(f"skipped: {ONE_PASS}")
            return report
        measure = _analytic if self.statistic == "analytic" else _measured
        missing = measure(graph, layers, context, self.statistic)
        for layer in layers:
            name = layer.node.name or ""
            if layer.node not in missing:
                report.refuse(name, "it was empty in every sample")
                continue
            reason = _add(graph, layer, missing[layer.node], _in_codes(layer, context.target))
            if reason is None:
                report.did(f"{name}: by at most {np.abs(missing[layer.node]).max():.3g}")
            else:
                report.refuse(name, reason)
        graph.drop_unread_initializers()
        return report


def _layers(graph: Graph, report: PassReport) -> list[_Layer]:
    """The planned layers whose bias can be changed; why not, for the others."""
    plan: Plan = graph.facts.get("plan")
    found = []
    for node in graph.nodes("Conv", "Gemm", "MatMul"):
        name = node.name or ""
        if (name, 1) not in plan.weights or (name, 0) not in plan.reads:
            continue
        layer = _layer(graph, node)
        if isinstance(layer, Reject):
            report.refuse(name, layer.reason)
        else:
            found.append(layer)
    return found


def correctable_layers(graph: Graph) -> list[_Layer]:
    """Return the planned layers whose bias can be changed."""
    return _layers(graph, PassReport())


def is_correctable(graph: Graph, node: Node) -> bool:
    """Whether `CorrectBias`, where it is on, takes the mean error of a layer out."""
    plan: Plan = graph.facts.get("plan")
    return (node.name or "", 0) in plan.reads and not isinstance(_layer(graph, node), Reject)


def _layer(graph: Graph, node: Node) -> _Layer | Reject:
    weight = graph.tensor(node.inputs[1])
    rank = graph.rank(node.outputs[0])
    assert weight is not None
    if rank is None or graph.rank(node.inputs[0]) is None:
        return Reject("the rank of its input or result is unknown")
    channels = int(weight.shape.numpy()[weight_axis(node)])
    if node.op_type != "MatMul":
        return _Layer(node, node, 2, channels, 1)
    add = graph.only_reader(node.outputs[0])
    if add is None or not graph.is_standard(add, "Add"):
        return Reject("no bias is added behind the product")
    index = 1 if add.inputs[0] is node.outputs[0] else 0
    bias = constant(graph, add.inputs[index])
    if bias is None or bias.shape != (channels,):
        return Reject("what is added behind the product is not one constant a channel")
    return _Layer(node, add, index, channels, rank - 1)


def _measured(
    graph: Graph, layers: list[_Layer], context: Context, statistic: str
) -> dict[Node, FloatArray]:
    """Median or mean over samples of the layers' mean errors, float64 [channels]."""
    if not layers:
        return {}
    twins = with_twins(graph, [layer.node for layer in layers])
    axes = {name: each.axis for each in layers for name in twins.results[each.node.name or ""]}
    seen: dict[Node, list[FloatArray]] = {}
    for sample in channel_statistics(twins.graph, axes, ("mean",), context, "correcting biases"):
        for layer in layers:
            exact, quantized = twins.results[layer.node.name or ""]
            if exact in sample:
                difference = sample[exact][0] - sample[quantized][0]
                seen.setdefault(layer.node, []).append(difference)
    return {node: _middle(rows, statistic) for node, rows in seen.items()}


def _middle(rows: list[FloatArray], statistic: str) -> FloatArray:
    reduce = np.median if statistic == "median" else np.mean
    return np.asarray(reduce(np.stack(rows), axis=0), np.float64)


def _analytic(
    graph: Graph, layers: list[_Layer], context: Context, statistic: str
) -> dict[Node, FloatArray]:
    """Weight error times mean input, float64 [channels]; statistic is not used.

    A convolution's zero padding is taken for data, so near borders it is too large.
    """
    if not layers:
        return {}
    axes = {}
    for layer in layers:
        data = layer.node.inputs[0]
        assert data is not None
        axes[data.name or ""] = 1 if layer.node.op_type != "MatMul" else (graph.rank(data) or 1) - 1
    rows: dict[str, list[FloatArray]] = {name: [] for name in axes}
    for sample in channel_statistics(graph, axes, ("mean",), context, "correcting biases"):
        for name, mean in sample.items():
            rows[name].append(mean[0])
    weights: dict[tuple[str, int], QuantizedWeight] = graph.facts.get("weights")
    found = {}
    for layer in layers:
        data = layer.node.inputs[0]
        weight = graph.array(layer.node.inputs[1])
        assert data is not None and weight is not None
        if rows[data.name or ""]:
            quantized = weights[layer.node.name or "", 1]
            error = weight.astype(np.float64) - dequantize(quantized.codes, quantized.encoding)
            mean = np.mean(np.stack(rows[data.name or ""]), axis=0)
            found[layer.node] = _product(layer.node, error, mean)
    return found


def _product(node: Node, error: NDArray[np.float64], mean: FloatArray) -> FloatArray:
    """What a layer with weight `error` makes of an input that is `mean` everywhere."""
    if node.op_type == "Conv":
        flat = error.reshape(*error.shape[:2], -1).sum(axis=2)  # [M, C / groups]
        groups = int(Graph.attribute(node, "group", 1))
        inputs = np.repeat(mean.reshape(groups, -1), len(flat) // groups, axis=0)
        return np.asarray((flat * inputs).sum(axis=1), np.float64)
    matrix = np.moveaxis(error, weight_axis(node), 0)
    return np.asarray(matrix @ mean, np.float64)


def _in_codes(layer: _Layer, target: Target) -> bool:
    """Whether the target wants the layer's bias in int32."""
    rule = target.rule(layer.node.op_type)
    return layer.holder is layer.node and rule is not None and rule.role(layer.index) == "bias"


def _add(graph: Graph, layer: _Layer, missing: FloatArray, in_codes: bool) -> str | None:
    """Add the correction to the layer's bias; return why it can't be, or None."""
    old = layer.bias
    array = None if old is None else constant(graph, old)
    if old is not None and array is None:
        return "its bias is no plain constant"
    bias = (missing if array is None else array + missing).astype(np.float32)
    if in_codes and not _fits(graph, layer, bias):
        return "int32 can't hold the corrected bias"
    if old is None:
        value = graph.constant(f"{layer.node.name}_bias", bias)
        if in_codes:
            _plan_bias(graph, layer)
    else:
        value = folded(graph, old, bias)
    graph.set_input(layer.holder, layer.index, value)
    return None


def _plan_bias(graph: Graph, layer: _Layer) -> None:
    """Plan a bias that was not there before."""
    plan: Plan = graph.facts.get("plan")
    key = (layer.node.name or "", layer.index)
    plan.biases[key] = Placement(Spec("int32"), f"{key[0]}:{key[1]}", "bias from correct_bias")


def _fits(graph: Graph, layer: _Layer, bias: NDArray[np.float32]) -> bool:
    """Whether the bias, in steps of data scale times weight scale, fits its int32 codes."""
    encodings: dict[str, Encoding] = graph.facts.get("encodings")
    weights: dict[tuple[str, int], QuantizedWeight] = graph.facts.get("weights")
    data = layer.node.inputs[0]
    assert data is not None
    scale = weights[layer.node.name or "", 1].encoding.scale.reshape(-1).astype(np.float64)
    step = float(encodings[data.name or ""].scale) * scale
    return bool((np.abs(bias) <= 2 * BIAS_LIMIT * step * (1 - 2**-20)).all())
