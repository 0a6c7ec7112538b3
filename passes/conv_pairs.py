"""Two convolutions with an activation function between them, and moving scales across it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.graph import Graph, Node, Value
from qgraph.passes.collect_channels import channel_statistics
from qgraph.passes.fusions._affine import LOSSY, Affine, Fold, fold_into_conv
from qgraph.passes.fusions._constants import FloatArray, constant, folded, scaled
from qgraph.passes.plan import clip_bounds
from qgraph.pipeline import Reject

# Activation functions f with f(s x) = s f(x) for every s > 0; Clip up to its bound alone.
_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Clip")


@dataclass(frozen=True, eq=False)
class ConvPair:
    """A convolution that alone feeds another one.

    Attributes:
        producer: The Conv that writes the channels.
        consumer: The Conv that alone reads them.
        between: The value that `consumer` reads, behind the activation function.
        channels: How many channels it has.
        bound: Upper bound of a Clip between them; infinite without one.
    """

    producer: Node
    consumer: Node
    between: Value
    channels: int
    bound: float = float("inf")

    @property
    def depthwise(self) -> bool:
        """Whether each channel of the consumer reads one channel."""
        return int(Graph.attribute(self.consumer, "group", 1)) == self.channels


def find_pair(graph: Graph, consumer: Node) -> ConvPair | Reject:
    """Return the pair that ends in the Conv `consumer`, or why there is none to scale."""
    weight = constant(graph, consumer.inputs[1])
    value = consumer.inputs[0]
    if weight is None or value is None:
        return Reject("the convolution's weight is not a constant")
    channels = weight.shape[1] * int(graph.attribute(consumer, "group", 1))
    read, bound, node = value, float("inf"), value.producer()
    if graph.only_reader(value) is not consumer:
        return Reject("its input is read elsewhere too")
    if node is not None and graph.is_standard(node, *_HOMOGENEOUS):
        if node.op_type == "Clip":
            bounds = clip_bounds(graph, node)
            if bounds is None or bounds[0] != 0 or not bounds[1] > 0:
                return Reject("the Clip before it is not from 0 to a constant above 0")
            bound = bounds[1]
        inner = node.inputs[0]
        if inner is None or graph.only_reader(inner) is not node:
            return Reject("the activation function's input is read elsewhere too")
        value, node = inner, inner.producer()
    if node is None or not graph.is_standard(node, "Conv"):
        return Reject("its input comes from no convolution through a scalable activation function")
    return ConvPair(node, consumer, read, channels, bound)


def channel_ranges(
    graph: Graph, pairs: Sequence[ConvPair], context: Context, what: str
) -> dict[ConvPair, FloatArray]:
    """Return the largest absolute value of each channel between each pair, float64 [channels].

    Args:
        graph: The float graph.
        pairs: The pairs; those whose value was empty in every sample get zeros.
        context: Has the calibration data.
        what: What to call this in progress reports.

    Raises:
        DataError: There is no data, or it makes a value infinite.
    """
    names = {pair.between.name or "": pair for pair in pairs}
    found = {pair: np.zeros(pair.channels) for pair in pairs}
    if not names:
        return found
    for sample in channel_statistics(graph, dict.fromkeys(names, 1), ("min", "max"), context, what):
        for name, extremes in sample.items():
            np.maximum(found[names[name]], np.abs(extremes).max(axis=0), out=found[names[name]])
    return found


@dataclass(frozen=True)
class Rescaling:
    """New constants for a pair, so that the value between holds `1 / scale` of what it held."""

    pair: ConvPair
    producer: Fold
    weight: NDArray[np.generic]

    def put(self, graph: Graph) -> None:
        """Make both convolutions read them."""
        self.producer.put(graph, self.pair.producer)
        old = self.pair.consumer.inputs[1]
        assert old is not None
        graph.set_input(self.pair.consumer, 1, folded(graph, old, self.weight))


def rescaling(graph: Graph, pair: ConvPair, scale: FloatArray) -> Rescaling | Reject:
    """Divide the channels between a pair by `scale`, float64 [channels] above 0.

    The producer's weights and bias are divided and the consumer's weights multiplied, so that the
    consumer's result stays the same: exactly without a Clip, and with one while no channel
    exceeds `scale * bound`, since the bound itself stays as it is.
    """
    weight = constant(graph, pair.consumer.inputs[1])
    assert weight is not None
    first = fold_into_conv(graph, pair.producer, Affine(1 / scale, np.zeros_like(scale)))
    if isinstance(first, Reject):
        return first
    groups = int(graph.attribute(pair.consumer, "group", 1))
    # Each output channel reads the input channels of its group.
    columns = np.repeat(scale.reshape(groups, -1), len(weight) // groups, axis=0)
    second = scaled(weight, columns.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)))
    if second is None:
        return Reject(LOSSY.format(weight.dtype))
    return Rescaling(pair, first, second)
