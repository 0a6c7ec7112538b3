"""Gives all channels of an image the same slope, so that raw pixels are codes of one encoding."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qgraph.context import Context
from qgraph.graph import Graph, Node, Value
from qgraph.passes.fusions._constants import constant, folded, scaled
from qgraph.pipeline import Pass, PassReport


@dataclass(frozen=True)
class FoldImages(Pass):
    """Scale the first convolution's weights so that `[images] std` is the same for all channels.

    A channel of the input is (pixel * scale - mean) / std. Where std differs, pixels can't be
    codes of an encoding with one scale. The input is multiplied by std / mean of std, and the
    weights that read the channel are divided by it: exact but for float rounding, and done before
    weights are quantized, so these are rounded once. `quantize_io` then takes the product out.

    Before:
        y = Conv (image, w)
    After:
        level = Mul (image, ratio)       # ratio [1, C, 1, 1]
        y = Conv (level, w_folded)       # w / ratio along the input channels

    When:
        The model's only input is a float image, all that reads it is a Conv of one group with
        constant weights, at most behind a Transpose, and std differs between channels.

    Leaves alone:
        Everything else: `quantize_io` puts the arithmetic in front of it.
    """

    name: ClassVar[str] = "fold_images"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite the graph if its first convolution can take it."""
        report = PassReport()
        images = getattr(context.recipe, "images", None)
        if images is None or len(set(images.std)) < 2 or len(graph.inputs) != 1:
            return report
        found = _first_conv(graph, graph.inputs[0])
        if isinstance(found, str):
            report.refuse(graph.inputs[0].name or "input", found)
            return report
        weight = constant(graph, found.inputs[1])
        assert weight is not None and found.inputs[1] is not None and found.inputs[0] is not None
        std = np.array(images.std, np.float64)
        ratio = (std / std.mean()).astype(np.float32)
        shape = (1, -1, *[1] * (weight.ndim - 2))
        fits = weight.shape[1] == len(std)
        level = scaled(weight, 1 / ratio.astype(np.float64).reshape(shape)) if fits else None
        if level is None:
            report.refuse(found.name or "", "its weights don't fit the images' channels")
            return report
        data = found.inputs[0]
        product = graph.insert(
            "Mul",
            [data, graph.constant(f"{data.name}_ratio", ratio.reshape(shape))],
            before=found,
            name=f"{data.name}_level",
            like=data,
        )
        graph.set_input(found, 0, product.outputs[0])
        graph.set_input(found, 1, folded(graph, found.inputs[1], level))
        graph.drop_unread_initializers()
        report.did(found.name or "Conv")
        return report


def _first_conv(graph: Graph, value: Value) -> Node | str:
    """The convolution that alone reads an image, or the reason why there is none."""
    reader = graph.only_reader(value)
    if reader is not None and graph.is_standard(reader, "Transpose"):
        reader = graph.only_reader(reader.outputs[0])
    if reader is None or not graph.is_standard(reader, "Conv"):
        return "it is not read by a single Conv"
    if graph.attribute(reader, "group", 1) != 1:
        return "its Conv has groups"
    if constant(graph, reader.inputs[1]) is None:
        return "its Conv has no constant weight"
    return reader
