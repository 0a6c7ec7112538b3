"""A layer as a matrix product: rows of its input times its weight as a matrix."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.placement.layers import weight_axis

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class Window:
    """How a convolution moves over its input.

    Attributes:
        kernel: Its size along each spatial axis.
        strides: Steps between two results.
        dilations: Steps between two elements of the kernel.
        pads: Zeros before and behind each axis; None where `auto_pad` says it.
        auto_pad: ONNX's attribute.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    auto_pad: str = "NOTSET"

    def padding(self, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        """Zeros before and behind each spatial axis of an input of these sizes."""
        if self.auto_pad == "NOTSET":
            return list(self.pads)
        if self.auto_pad == "VALID":
            return [(0, 0)] * len(sizes)
        found = []
        spans = zip(sizes, self.kernel, self.strides, self.dilations, strict=True)
        for size, kernel, stride, dilation in spans:
            results = -(-size // stride)
            total = max(0, (results - 1) * stride + (kernel - 1) * dilation + 1 - size)
            less, more = total // 2, total - total // 2
            found.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return found


@dataclass(frozen=True)
class Layout:
    """How a layer's input is cut into rows.

    Attributes:
        groups: Groups of a convolution; 1 for everything else.
        window: Of a convolution; None for a Gemm or MatMul.
    """

    groups: int = 1
    window: Window | None = None

    def rows(
        self, x: NDArray[np.floating], count: int, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Return at most `count` rows of what the weight is multiplied with, drawn at random.

        Args:
            x: The layer's input: [batch, channels, ...] of a convolution, else [..., K].
            count: How many rows.
            rng: Draws the rows.

        Returns:
            float32 [rows, groups, K].
        """
        if self.window is None:
            flat = x.reshape(-1, x.shape[-1])
            return flat[_draw(len(flat), count, rng)].astype(np.float32)[:, None, :]
        return self._patches(x, self.window, count, rng)

    def _patches(
        self, x: NDArray[np.floating], window: Window, count: int, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        padding = window.padding(x.shape[2:])
        if any(before or behind for before, behind in padding):
            x = np.pad(x, [(0, 0), (0, 0), *padding])
        reach = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
        sizes = [
            max(0, (size - span) // stride + 1)
            for size, span, stride in zip(x.shape[2:], reach, window.strides, strict=True)
        ]
        shape = (x.shape[0], *sizes)
        drawn = np.unravel_index(_draw(int(np.prod(shape)), count, rng), shape)
        places = []
        for axis, start in enumerate(drawn[1:]):
            offsets = np.arange(window.kernel[axis]) * window.dilations[axis]
            ones = [1] * len(sizes)
            ones[axis] = len(offsets)
            begin = (start * window.strides[axis]).reshape(-1, *[1] * len(sizes))
            places.append(begin + offsets.reshape(ones))
        image = drawn[0].reshape(-1, *[1] * len(sizes))
        # Index arrays on both sides of a slice come first: [rows, *kernel, channels].
        index: Any = (image, slice(None), *places)
        found: NDArray[np.floating] = x[index]
        channels_first = np.moveaxis(found, -1, 1).astype(np.float32)
        size = x.shape[1] // self.groups * int(np.prod(window.kernel))
        return channels_first.reshape(len(found), self.groups, size)


def layout(graph: Graph, node: Node) -> Layout:
    """How the input of a Conv, Gemm or MatMul with constant weight is cut into rows."""
    if node.op_type != "Conv":
        return Layout()
    kernel = _shape(graph, node.inputs[1])[2:]
    ones, none = [1] * len(kernel), [0] * 2 * len(kernel)
    pads = graph.attribute(node, "pads", none)
    window = Window(
        kernel,
        tuple(graph.attribute(node, "strides", ones)),
        tuple(graph.attribute(node, "dilations", ones)),
        tuple(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)),
        graph.attribute(node, "auto_pad", "NOTSET"),
    )
    return Layout(int(graph.attribute(node, "group", 1)), window)


def weight_shape(graph: Graph, node: Node) -> tuple[int, int, int]:
    """(groups, K, outputs of a group) of a layer's weight, without decoding it."""
    shape, axis = _shape(graph, node.inputs[1]), weight_axis(node)
    groups = layout(graph, node).groups
    return groups, int(np.prod(shape)) // shape[axis], shape[axis] // groups


def to_matrix(array: NDArray[_Number], axis: int, groups: int) -> NDArray[_Number]:
    """Return a weight, its codes or its scales as [groups, K, outputs of a group].

    Args:
        array: In the weight's own shape.
        axis: Axis of the output channels.
        groups: Groups of a convolution.
    """
    outputs = array.shape[axis]
    rows = np.moveaxis(array, axis, 0).reshape(groups, outputs // groups, -1)
    return rows.transpose(0, 2, 1)


def from_matrix(matrix: NDArray[_Number], shape: tuple[int, ...], axis: int) -> NDArray[_Number]:
    """Return the array of `shape` whose `to_matrix` is `matrix`."""
    moved = (shape[axis], *(n for i, n in enumerate(shape) if i != axis))
    rows = matrix.transpose(0, 2, 1).reshape(moved)
    return np.ascontiguousarray(np.moveaxis(rows, 0, axis))


def _draw(total: int, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    if total <= count:
        return np.arange(total)
    return np.sort(rng.choice(total, count, replace=False))


def _shape(graph: Graph, value: Value | None) -> tuple[int, ...]:
    tensor = graph.tensor(value)
    assert tensor is not None
    return tuple(int(n) for n in tensor.shape.numpy())
