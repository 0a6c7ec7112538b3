"""Moves the spread of activation channels into the weights that read them."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qgraph.context import Context
from qgraph.encoding import Spec, dequantize, encode_array, encode_range, quantize
from qgraph.graph import Graph, Node, Value
from qgraph.passes.collect_channels import channel_statistics, rereadable
from qgraph.passes.collect_rows import channel_rows
from qgraph.passes.equalize_depthwise import ONE_PASS
from qgraph.passes.fusions._constants import FloatArray, constant, folded, rounded, scaled
from qgraph.pipeline import Pass, PassReport

# Left on a normalisation that is done: smoothing again would smooth further.
MARK = "qgraph.smoothed"
# What is tried where no alpha is given.
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Another alpha must beat none by this share of the error, or the graph stays as it is.
GAIN = 0.02
_NORMS = ("LayerNormalization", "RMSNormalization")
# A scale can't go through these: a Mul stands behind them.
_FUNCTIONS = ("Gelu",)
# Activations where no target says what it wants.
_SPEC = Spec("uint8", symmetric=False)


@dataclass(frozen=True, eq=False)
class _Block:
    """A normalisation or Gelu and the linear layers that read it.

    Attributes:
        norm: The node.
        value: Its result.
        linears: MatMul and Gemm nodes that read it, with constant weights.
        alone: Whether nothing else reads it and the node can take the scale in.
    """

    norm: Node
    value: Value
    linears: list[Node]
    alone: bool


@dataclass(frozen=True)
class Smooth(Pass):
    """Divide channels behind a LayerNormalization or Gelu by s, multiply the weights' rows by it.

    s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), j a channel, w_j its row over all linear layers
    that read it, normalised to a geometric mean of 1. Activations have one scale per tensor, so
    channels of like size use its codes better; weights have one scale a column, which suffers
    from unlike rows: alpha says how much goes over.

    Where the linear layers alone read the normalisation, s goes into its scale and bias. Where a
    residual reads it too, and behind a Gelu, which no scale goes through, a Mul by 1 / s stands
    between it and the linear layers.

    When:
        LayerNormalization or RMSNormalization over the last axis with constant scale and bias, or
        Gelu, read by at least one MatMul or Gemm with a constant weight [K, N]; data that can be
        read twice.

    Leaves alone:
        Blocks where no alpha lowers the error of the linear layers' results, on rows of
        calibration data, by 2%.

    Source:
        Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
        Language Models", section 4.

    Attributes:
        enabled: Whether to do it.
        alpha: Share of the spread that goes into the weights; searched in each block if not given.
    """

    enabled: bool = False
    alpha: Annotated[float, Field(gt=0, lt=1)] | None = None

    name: ClassVar[str] = "smooth"
    numerics = "exact"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite every block.

        Raises:
            DataError: There is no data, or it makes a value NaN or infinite.
        """
        report = PassReport()
        if not self.enabled:
            return report
        graph.name_nodes()
        blocks = [
            b for node in graph.nodes(*_NORMS, *_FUNCTIONS) if (b := _block(graph, node, report))
        ]
        if blocks and not rereadable(context.data):
            report.warnings.append(f"skipped: {ONE_PASS}")
            return report
        if not blocks:
            return report
        spec = context.target.activation if context.target else _SPEC
        largest = _largest(graph, blocks, context)
        names = [block.value.name or "" for block in blocks]
        # All blocks are searched on rows of the graph as it was: smoothing changes no result.
        rows = {} if self.alpha else channel_rows(graph, names, context, "searching alpha")
        for block in blocks:
            name = block.value.name or ""
            if name not in largest or (not self.alpha and name not in rows):
                report.refuse(block.norm.name or "", "it was empty in every sample")
                continue
            weights = [_matrix(graph, node) for node in block.linears]
            size = np.abs(np.concatenate(weights, axis=1)).max(axis=1)
            alpha = self.alpha or _search(rows[name], weights, largest[name], size, spec)
            if alpha is None:
                report.refuse(block.norm.name or "", "no alpha lowers the error")
                continue
            reason = _apply(graph, block, _scale(largest[name], size, alpha))
            if reason is None:
                how = "folded" if block.alone else "Mul"
                report.did(f"{block.norm.name}: alpha {alpha:g}, {how}")
            else:
                report.refuse(block.norm.name or "", reason)
        graph.drop_unread_initializers()
        return report


def _block(graph: Graph, node: Node, report: PassReport) -> _Block | None:
    value = node.outputs[0]
    linears = [use.node for use in value.uses() if _is_linear(graph, use.node, use.idx)]
    if not linears:
        return None
    foldable = node.op_type in _NORMS
    if MARK in node.metadata_props:
        reason: str | None = "it is smoothed already"
    elif graph.rank(value) is None:
        reason = "its rank is unknown"
    else:
        reason = _unfit(graph, node) if foldable else None
    if reason is not None:
        report.refuse(node.name or "", reason)
        return None
    alone = foldable and len(linears) == len(value.uses()) and not value.is_graph_output()
    return _Block(node, value, linears, alone)


def _unfit(graph: Graph, norm: Node) -> str | None:
    """Why a normalisation's channels can't be scaled, or None."""
    scale = constant(graph, norm.inputs[1])
    bias = norm.inputs[2] if len(norm.inputs) > 2 else None
    axis, rank = graph.attribute(norm, "axis", -1), graph.rank(norm.outputs[0]) or 0
    if scale is None or scale.ndim != 1 or (bias is not None and constant(graph, bias) is None):
        return "its scale or bias is not one constant a channel"
    if axis not in (-1, rank - 1):
        return "it normalises over more than the last axis"
    if any(other.uses() or other.is_graph_output() for other in norm.outputs[1:]):
        return "its statistics are used"
    return None


def _is_linear(graph: Graph, node: Node, index: int) -> bool:
    if index != 0 or not graph.is_standard(node, "MatMul", "Gemm"):
        return False
    weight = constant(graph, node.inputs[1])
    plain = not graph.attribute(node, "transA", 0)
    return weight is not None and weight.ndim == 2 and plain and node.graph is graph.main


def _matrix(graph: Graph, node: Node) -> NDArray[np.float32]:
    """The weight of a linear layer as float32 [K, N]."""
    weight = constant(graph, node.inputs[1])
    assert weight is not None
    return np.asarray(weight.T if graph.attribute(node, "transB", 0) else weight, np.float32)


def _largest(graph: Graph, blocks: list[_Block], context: Context) -> dict[str, FloatArray]:
    """Largest absolute value of each channel over all samples, float64 [channels]."""
    axes = {block.value.name or "": (graph.rank(block.value) or 1) - 1 for block in blocks}
    found: dict[str, FloatArray] = {}
    for sample in channel_statistics(graph, axes, ("min", "max"), context, "smoothing"):
        for name, extremes in sample.items():
            here = np.abs(extremes).max(axis=0)
            found[name] = np.maximum(found[name], here) if name in found else here
    return found


def _scale(x: FloatArray, w: NDArray[np.floating], alpha: float) -> FloatArray:
    """Return s of each channel, float64; 1 where a channel or its weights are all zero."""
    alive = (x > 0) & (w > 0)
    if not alive.any():
        return np.ones_like(x)
    s = np.ones_like(x)
    s[alive] = x[alive] ** alpha / w[alive].astype(np.float64) ** (1 - alpha)
    s[alive] /= np.exp(np.log(s[alive]).mean())
    return s


def _search(
    rows: NDArray[np.float32],
    weights: list[NDArray[np.float32]],
    x: FloatArray,
    w: NDArray[np.floating],
    spec: Spec,
) -> float | None:
    """Return the alpha with the least squared error of the products, or None if none helps."""
    exact = [rows @ weight for weight in weights]
    before = _error(rows, weights, exact, np.ones_like(x), spec)
    errors = {alpha: _error(rows, weights, exact, _scale(x, w, alpha), spec) for alpha in ALPHAS}
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < (1 - GAIN) * before else None


def _error(
    rows: NDArray[np.float32],
    weights: list[NDArray[np.float32]],
    exact: list[NDArray[np.float32]],
    scale: FloatArray,
    spec: Spec,
) -> float:
    """Relative squared error with activations per tensor and 8-bit weights per column."""
    data = (rows / scale).astype(np.float32)
    encoding = encode_range(data.min(), data.max(), spec)
    data = dequantize(quantize(data, encoding), encoding)
    total = 0.0
    for weight, want in zip(weights, exact, strict=True):
        moved = (weight * scale[:, None]).astype(np.float32)
        columns = encode_array(moved, Spec("int8", axis=1, narrow=True))
        got = data @ dequantize(quantize(moved, columns), columns)
        size = float(np.square(want, dtype=np.float64).sum())
        total += float(np.square(got - want, dtype=np.float64).sum()) / (size or 1.0)
    return total


def _apply(graph: Graph, block: _Block, scale: FloatArray) -> str | None:
    """Divide the block's channels by `scale`; return why that can't be, or None."""
    moved = []
    for node in block.linears:
        weight = constant(graph, node.inputs[1])
        assert weight is not None
        rows = scale[None, :] if graph.attribute(node, "transB", 0) else scale[:, None]
        moved.append(scaled(weight, rows))
    if any(array is None for array in moved):
        return "the folded weights overflow or underflow"
    if block.alone:
        for index in (1, 2):
            old = block.norm.inputs[index] if index < len(block.norm.inputs) else None
            array = constant(graph, old)
            if old is None or array is None:
                continue
            new = rounded(array.astype(np.float64) / scale, array.dtype)
            if new is None:
                return "the folded scale overflows"
            graph.set_input(block.norm, index, folded(graph, old, new))
    else:
        dtype = moved[0].dtype if moved[0] is not None else np.dtype(np.float32)
        factor = graph.constant(f"{block.norm.name}_smoothing", (1 / scale).astype(dtype))
        inputs = [block.value, factor]
        mul = graph.insert("Mul", inputs, after=block.norm, like=block.value)
        for node in block.linears:
            graph.set_input(node, 0, mul.outputs[0])
    for node, array in zip(block.linears, moved, strict=True):
        old = node.inputs[1]
        assert old is not None and array is not None
        graph.set_input(node, 1, folded(graph, old, array))
    block.norm.metadata_props[MARK] = "1"
    return None
