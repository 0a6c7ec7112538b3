"""Cross-layer equalization: weight ranges of neighbouring convolutions made equal."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from qgraph.context import Context
from qgraph.errors import DataError
from qgraph.graph import Graph
from qgraph.passes.collect_channels import rereadable
from qgraph.passes.conv_pairs import ConvPair, channel_ranges, find_pair, rescaling
from qgraph.passes.equalize_depthwise import MARK, ONE_PASS
from qgraph.passes.fusions._constants import FloatArray, constant
from qgraph.passes.hold_out import Part, kept_sqnr
from qgraph.pipeline import Pass, PassReport, Reject

# Scales nearer to 1 than this change no code worth a round.
TOLERANCE = 0.01


@dataclass(frozen=True)
class EqualizeLayers(Pass):
    """Make the weight ranges of neighbouring convolutions equal, channel by channel.

    Channel i between two convolutions is divided by s_i = sqrt(r1_i / r2_i) in the producer's
    weights and bias and multiplied again in the consumer's, r1_i and r2_i being the largest
    absolute weights that write and read it: both then have sqrt(r1_i r2_i). Chains, depthwise
    convolutions among them, are gone through until the scales settle.

    Meant for weights with one scale per tensor. With one scale an output channel, as here, it evens
    the rows of the consumer's weights and changes the activations as it happens (measured:
    docs/accuracy.md); `equalize_depthwise` is the better choice for depthwise convolutions.

    When:
        Conv, then nothing, Relu, LeakyRelu, PRelu or Clip from 0, then Conv; constant weights; no
        other reader between them. A Clip to B limits the scales: they are divided by the largest
        one, and s_i is at least range_i / B with the range from data, so that no channel reaches
        the bound on calibration data. Data is read for that alone. Where other data reaches it,
        the model computes something else (efficientnet_lite0 keeps 12 dB): this is tried with the
        ranges of three samples in four on the others, and nothing is done before a Clip if the
        model keeps less than `min_sqnr_db` there.

    Leaves alone:
        Other activation functions; residual connections; channels whose weights are all zero.

    Source:
        Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
        Correction", section 4.1.

    Attributes:
        enabled: Whether to do it.
        rounds: How often to go through all pairs at most.
        min_sqnr_db: What the float model must keep on samples that gave no ranges, dB.
    """

    enabled: bool = False
    rounds: Annotated[int, Field(ge=1)] = 20
    min_sqnr_db: float = 40.0

    name: ClassVar[str] = "equalize_layers"
    numerics = "rounding"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rescale the constants in place.

        Raises:
            DataError: A Clip needs data and there is none, or it makes a value infinite.
        """
        report = PassReport()
        if not self.enabled:
            return report
        graph.name_nodes()
        pairs = _pairs(graph, report)
        clipped = [pair for pair in pairs if np.isfinite(pair.bound)]
        reason, ranges = self._bounded(graph, clipped, context) if clipped else (None, {})
        if reason is not None:
            report.warnings.append(f"convolutions before a Clip skipped: {reason}")
            pairs = [pair for pair in pairs if pair not in clipped]
        for pair, count in self._rescale(graph, pairs, ranges, report).items():
            pair.consumer.metadata_props[MARK] = "layers"
            report.did(f"{pair.consumer.name}: {count} rounds")
        graph.drop_unread_initializers()
        return report

    def _bounded(
        self, graph: Graph, clipped: list[ConvPair], context: Context
    ) -> tuple[str | None, dict[ConvPair, FloatArray]]:
        """Say why pairs before a Clip must be left alone, or None with their channels' ranges."""
        if not rereadable(context.data):
            return ONE_PASS, {}
        if context.data is None:
            raise DataError("equalizing needs data", fix="pass --data")
        rest, held = Part(context.data, held=False), Part(context.data, held=True)
        ranges = channel_ranges(graph, clipped, replace(context, data=rest), "equalizing")
        trial = Graph(graph.model.clone(), source=graph.source, sparse=graph.sparse)
        named = {pair.consumer.name: found for pair, found in ranges.items()}
        pairs = _pairs(trial, PassReport())
        found = {p: named[p.consumer.name] for p in pairs if p.consumer.name in named}
        self._rescale(trial, pairs, found, PassReport())
        kept = kept_sqnr(graph, trial, held)
        if kept is None:
            return "too few samples to try it on some that it has not seen", {}
        if kept < self.min_sqnr_db:
            return f"on samples not seen the model keeps {kept:.1f} dB only", {}
        others = channel_ranges(graph, clipped, replace(context, data=held), "equalizing")
        return None, {pair: np.maximum(ranges[pair], others[pair]) for pair in clipped}

    def _rescale(
        self,
        graph: Graph,
        pairs: list[ConvPair],
        ranges: dict[ConvPair, FloatArray],
        report: PassReport,
    ) -> dict[ConvPair, int]:
        """Rescale until nothing moves; return how often each pair did."""
        done: dict[ConvPair, int] = {}
        ranges = dict(ranges)
        for _ in range(self.rounds):
            moving = [pair for pair in pairs if _equalize(graph, pair, ranges, report)]
            if not moving:
                break
            for pair in moving:
                done[pair] = done.get(pair, 0) + 1
        return done


def _pairs(graph: Graph, report: PassReport) -> list[ConvPair]:
    found = []
    for node in graph.nodes("Conv"):
        if MARK in node.metadata_props:
            report.refuse(node.name or "", "its input is equalized already")
            continue
        pair = find_pair(graph, node)
        if isinstance(pair, Reject):
            report.refuse(node.name or "", pair.reason)
        else:
            found.append(pair)
    return found


def _equalize(
    graph: Graph, pair: ConvPair, ranges: dict[ConvPair, FloatArray], report: PassReport
) -> bool:
    """Rescale one pair; return whether that changed anything."""
    first = constant(graph, pair.producer.inputs[1])
    second = constant(graph, pair.consumer.inputs[1])
    if first is None or second is None:
        return False
    written = np.abs(first.reshape(pair.channels, -1)).max(axis=1).astype(np.float64)
    groups = int(graph.attribute(pair.consumer, "group", 1))
    # [M, C / groups, k...] to [C, whatever reads the channel].
    by_group = np.abs(second).reshape(groups, len(second) // groups, second.shape[1], -1)
    read = by_group.max(axis=(1, 3)).reshape(-1).astype(np.float64)
    alive = (written > 0) & (read > 0)
    scale = np.ones(pair.channels)
    scale[alive] = np.sqrt(written[alive] / read[alive])
    if pair in ranges and alive.any():
        scale[alive] /= scale[alive].max()
        scale = np.maximum(scale, ranges[pair] / pair.bound)
    if (np.abs(np.log(scale)) < TOLERANCE).all():
        return False
    change = rescaling(graph, pair, scale)
    if isinstance(change, Reject):
        report.refuse(pair.consumer.name or "", change.reason)
        return False
    change.put(graph)
    if pair in ranges:
        ranges[pair] = ranges[pair] / scale
    return True
