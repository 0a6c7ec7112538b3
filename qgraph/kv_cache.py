"""The KV cache of a decoder: which inputs are caches, and what each of them grows into.

Told from the graph where it can be: a cache enters, is put in front of the new keys or values along
an axis of dynamic length, and leaves. Names decide only where the graph hides it, as in a subgraph.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qgraph.graph import Graph, Node, Value
from qgraph.runtime.backend import TensorInfo

# What passes a cache on as it is, up to its type.
_CARRIERS = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear")
# (domain, operator, input) -> output, for operators that grow caches [batch, heads, length, size]:
# https://onnx.ai/onnx/operators/onnx__Attention.html and onnxruntime's docs/ContribOperators.md.
_OPERATORS = {
    ("", "Attention", 4): 1,
    ("", "Attention", 5): 2,
    ("com.microsoft", "GroupQueryAttention", 3): 1,
    ("com.microsoft", "GroupQueryAttention", 4): 2,
    ("com.microsoft", "MultiHeadAttention", 6): 1,
    ("com.microsoft", "MultiHeadAttention", 7): 2,
}
_OPERATOR_AXIS = 2
# In an input's name -> in its output's; the first that occurs counts.
_RENAMED = (("past_key_values", "present"), ("past", "present"))
_AFFIXED = ("{}_out", "new_{}", "out_{}", "updated_{}")
_LENGTH_WORDS = ("past", "seq", "len", "cache", "ctx")


@dataclass(frozen=True)
class Cache:
    """One tensor of a KV cache.

    Attributes:
        input: Graph input that takes what former runs gave.
        output: Graph output that gives it with this run's tokens behind.
        axis: Axis that counts tokens; not negative.
    """

    input: str
    output: str
    axis: int


def find_caches(graph: Graph) -> tuple[Cache, ...]:
    """Return the caches among the graph's inputs, in their order."""
    outputs = {value.name: value for value in graph.outputs if value.name}
    found = (_by_graph(graph, value) or _by_name(value, outputs) for value in graph.inputs)
    return tuple(cache for cache in found if cache is not None)


def cache_axes(graph: Graph) -> dict[str, int]:
    """Return, by name, the axis that counts tokens in every input that is a cache."""
    return {cache.input: cache.axis for cache in find_caches(graph)}


def may_have_caches(inputs: Sequence[TensorInfo]) -> bool:
    """Whether one of several inputs could be a cache, before a model is read to find out."""
    several = len(inputs) > 1
    return several and any("float" in info.dtype and _lengths(info.shape) for info in inputs)


def cache_axes_of(model: Path, inputs: Sequence[TensorInfo]) -> dict[str, int]:
    """Return `cache_axes` of a model file; files without anything like a cache are not read.

    Args:
        model: ONNX file.
        inputs: Its inputs, as a session has them.

    Raises:
        ModelError: The file can't be read.
    """
    if not may_have_caches(inputs):
        return {}
    from qgraph.onnx_io import peek

    return cache_axes(peek(model))


def _by_graph(graph: Graph, value: Value) -> Cache | None:
    """Follow an input to what grows it, and that to a graph output."""
    shape = graph.shape(value)
    for node, index in _readers(value):
        grown = _grown(graph, node, index)
        if grown is None or shape is None:
            continue
        result, axis = grown
        axis = axis + len(shape) if axis < 0 else axis
        if axis not in _lengths(shape):
            continue
        for output in _carried(result):
            if output.is_graph_output() and graph.rank(output) in (None, len(shape)):
                return Cache(value.name or "", output.name or "", axis)
    return None


def _grown(graph: Graph, node: Node, index: int) -> tuple[Value, int] | None:
    """Return what a node makes of a cache at its input `index`, and the axis that grows."""
    if graph.is_standard(node, "Concat") and index == 0 and len(node.inputs) > 1:
        return node.outputs[0], graph.attribute(node, "axis", 0)
    domain = "" if graph.is_standard(node) else node.domain
    output = _OPERATORS.get((domain, node.op_type, index))
    if output is None or output >= len(node.outputs):
        return None
    return node.outputs[output], _OPERATOR_AXIS


def _carried(value: Value) -> Iterator[Value]:
    """Give a value and what carriers make of it, nearest first; in a DAG this ends."""
    waiting, seen = [value], {value}
    while waiting:
        here = waiting.pop(0)
        yield here
        for use in here.uses():
            node = use.node
            if Graph.is_standard(node, *_CARRIERS) and use.idx == 0:
                waiting += [out for out in node.outputs if out not in seen]
                seen.update(node.outputs)


def _readers(value: Value) -> Iterator[tuple[Node, int]]:
    """Give what reads a value, directly or behind carriers, and at which input."""
    for carried in _carried(value):
        for use in carried.uses():
            yield use.node, use.idx


def _by_name(value: Value, outputs: dict[str, Value]) -> Cache | None:
    """Pair an input with the output of the usual name."""
    name, shape = value.name or "", Graph.shape(value)
    axes = _lengths(shape)
    if len(axes) > 1 and shape is not None:
        axes = [a for a in axes if any(word in str(shape[a]).lower() for word in _LENGTH_WORDS)]
    if len(axes) != 1:
        return None
    renamed = [name.replace(old, new, 1) for old, new in _RENAMED if old in name][:1]
    for candidate in (*renamed, *(form.format(name) for form in _AFFIXED)):
        output = outputs.get(candidate)
        if output is not None and output.dtype == value.dtype:
            return Cache(name, candidate, axes[0])
    return None


def _lengths(shape: Sequence[int | str | None] | None) -> list[int]:
    """Return the axes that may count a cache's tokens: dynamic, and not the first."""
    return [axis for axis, dim in enumerate(shape or ()) if axis and not isinstance(dim, int)]
