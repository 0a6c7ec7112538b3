"""Gives the channels that enter a depthwise convolution like ranges, at no cost in arithmetic."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.passes.collect_channels import rereadable
from qgraph.passes.conv_pairs import ConvPair, channel_ranges, find_pair, rescaling
from qgraph.passes.fusions._constants import FloatArray, constant
from qgraph.pipeline import Pass, PassReport, Reject

# Left on a convolution whose input is done, so that a second run leaves it alone: unless `power` is
# 1, equalizing again would equalize further.
MARK = "qgraph.equalized"
ONE_PASS = "the data can be read only once, and calibration needs it"


@dataclass(frozen=True)
class EqualizeDepthwise(Pass):
    """Equalize the channels between a convolution and the depthwise convolution behind it.

    One scale per tensor serves all channels, so those with small values get few codes. Here each
    channel c is divided by s_c = min(1, headroom * (range_c / largest range)^power) in the
    producer's weights and bias, and multiplied again in the depthwise weights. Both have one scale
    an output channel, which takes up s_c without loss; the tensor between gains steps.

    With power 1 and headroom 1 every channel would end at the same range, and each would be
    clipped as often as the largest was; a square root leaves the small ones room (measured:
    docs/accuracy.md).

    A Clip from 0 to B (Relu6) between the two stays as it is. Exact would be a bound of B / s_c for
    channel c, which no engine fuses. The difference vanishes: s_c is at least range_c / B, so no
    channel reaches the bound on calibration data; and the encoding behind the Clip ends at B or
    below, so beyond it the codes of both forms saturate alike. Integer results are thus those of
    exact equalization on any data.

    When:
        Conv, then nothing, Relu, LeakyRelu, PRelu or Clip from 0, then a Conv with one group a
        channel; constant weights; no other reader between them. Data that can be read twice.

    Leaves alone:
        Dense consumers, whose weights would get less equal by as much as the activations gain; all
        other activation functions; channels that are zero in all samples.

    Source:
        Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
        Correction", section 4.1, with ranges of activations in place of weights'.

    Attributes:
        enabled: Whether to do it.
        power: 1 makes all ranges equal, 0 none; between, smaller channels keep more room.
        headroom: Factor on the ranges, at least 1.
    """

    enabled: bool = False
    power: Annotated[float, Field(ge=0, le=1)] = 0.5
    headroom: Annotated[float, Field(ge=1)] = 1.25

    name: ClassVar[str] = "equalize_depthwise"
    numerics = "rounding"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rescale the constants in place.

        Raises:
            DataError: There is no data, or it makes a value infinite.
        """
        report = PassReport()
        if not self.enabled:
            return report
        graph.name_nodes()
        pairs = _pairs(graph, report)
        if pairs and not rereadable(context.data):
            report.warnings.append(f"skipped: {ONE_PASS}")
            return report
        ranges = channel_ranges(graph, pairs, context, "equalizing")
        for pair in pairs:
            where = pair.consumer.name or ""
            scale = self._scale(ranges[pair])
            if (scale == 1).all():
                report.refuse(where, "its channels have like ranges already")
                continue
            change = rescaling(graph, pair, scale)
            if isinstance(change, Reject):
                report.refuse(where, change.reason)
                continue
            change.put(graph)
            pair.consumer.metadata_props[MARK] = "depthwise"
            report.did(f"{where}: scales {scale.min():.3g} to {scale.max():.3g}")
        graph.drop_unread_initializers()
        return report

    def _scale(self, ranges: FloatArray) -> FloatArray:
        """Scales of one pair, float64 [channels] in (0, 1]; 1 for dead channels."""
        largest = ranges.max(initial=0.0)
        if largest == 0:
            return np.ones_like(ranges)
        scale = np.minimum(1.0, self.headroom * (ranges / largest) ** self.power)
        return np.where(ranges > 0, scale, 1.0)


def _pairs(graph: Graph, report: PassReport) -> list[ConvPair]:
    found = []
    for node in graph.nodes("Conv"):
        weight = constant(graph, node.inputs[1])
        groups = graph.attribute(node, "group", 1)
        if groups == 1 or weight is None or weight.shape[1] != 1:
            continue  # dense, or unknown
        if MARK in node.metadata_props:
            report.refuse(node.name or "", "its input is equalized already")
            continue
        pair = find_pair(graph, node)
        if isinstance(pair, Reject):
            report.refuse(node.name or "", pair.reason)
        else:
            found.append(pair)
    return found
