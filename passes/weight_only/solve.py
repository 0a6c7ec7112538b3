"""Quantizes the weights of layers that share an input, from statistics of it: arrays only."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qgraph.arrays import beside, host
from qgraph.encoding import Encoding, Spec, dequantize
from qgraph.facts import QuantizedWeight
from qgraph.lazy import release
from qgraph.passes.weight_only.statistics import InputStatistics
from qgraph.passes.weights import (
    MATRIX_QUANTIZERS,
    WEIGHT_QUANTIZERS,
    matrix_quantizer,
    weight_quantizer,
)
from qgraph.passes.weights.awq import find_scaling, scaled_gram, scaled_weight
from qgraph.passes.weights.gptq import GPTQOptions, Solved, solve_gptq
from qgraph.passes.weights.grid import RangeSearch, fit, round_to
from qgraph.passes.weights.hqq import hqq_float
from qgraph.passes.weights.loss import column_losses
from qgraph.passes.weights.outliers import split_outliers
from qgraph.passes.weights.results import QuantizedMatrix
from qgraph.passes.weights.squeeze import squeeze

Floats = NDArray[np.floating]
# Powers of the channels' magnitudes that are tried: fewer than `find_scaling` would, for time.
ALPHAS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)
# Weights with fewer elements are solved for on the CPU. GPTQ with order and a search of ranges, one
# H100 against 16 cores beside it: 1.96 times as long for 1536 x 576, 1.16 for 2048 x 2048, 0.45
# for 4096 x 4096, 0.37 for 4096 x 14336.
GPU_SOLVES = 1 << 23
# Outlier channels in float, the others in int8; decided by the input alone.
MIXED = "llm-int8"
METHODS = (*WEIGHT_QUANTIZERS, *MATRIX_QUANTIZERS, MIXED)


@dataclass(frozen=True)
class Settings:
    """How weights are quantized.

    Attributes:
        method: One of `METHODS`.
        spec: Type, symmetry and granularity of uniform codes.
        scaling: Whether input channels are scaled first, as AWQ does.
        gptq: Options of `gptq`; its `search` is that of `clipped` too.
        bits: Of the codes of `squeeze`.
        threshold: Of `llm-int8`: input channels that reach it stay in float.
        float_zero: Whether `hqq` may have zero points that are not whole.
        blocks: By number of rows, the group length of weights that can't take that of `spec`.
    """

    method: str
    spec: Spec
    scaling: bool = False
    gptq: GPTQOptions = field(default_factory=GPTQOptions)
    bits: int = 4
    threshold: float = 6.0
    float_zero: bool = False
    blocks: Mapping[int, int] = field(default_factory=dict)

    def at(self, rows: int) -> "Settings":
        """Return the settings for weights with so many rows."""
        if rows not in self.blocks:
            return self
        return replace(self, spec=replace(self.spec, block=self.blocks[rows]))

    @property
    def uniform(self) -> bool:
        """Whether the result is whole codes with one encoding."""
        return self.method in WEIGHT_QUANTIZERS and not (self.float_zero and self.method == "hqq")

    def unscaled(self) -> "Settings":
        """Return the same without scaling."""
        return replace(self, scaling=False)


@dataclass(frozen=True, eq=False)
class Solution:
    """One quantized weight.

    Attributes:
        weight: Uniform codes, or a result that knows its own form, of `scale` times the weight.
        scale: [K], what rows of the weight were multiplied with and the input is divided by.
        before: Relative loss of rounding to nearest in the same encoding, or None.
        loss: Relative loss of the layer's output.
        method: Where the codes come from.
        note: Why something else was done than asked for.
        seconds: This weight's share of the time.
    """

    weight: QuantizedWeight | QuantizedMatrix
    scale: NDArray[np.float32] | None
    before: float | None
    loss: float
    method: str
    note: str = ""
    seconds: float = 0.0

    def stored(self) -> NDArray[np.float32]:
        """Return the weight as its form gives it, for the scaled input, float32 [K, N]."""
        if not isinstance(self.weight, QuantizedWeight):
            return self.weight.dequantize()
        found = dequantize(self.weight.codes, self.weight.encoding)
        release(self.weight.codes)
        return found

    def effective(self) -> NDArray[np.float32]:
        """Return what the layer multiplies its unscaled input by, float32 [K, N]."""
        found = self.stored()
        return found if self.scale is None else found / self.scale[:, None]


def solve_group(
    weights: Sequence[Floats],
    statistics: InputStatistics | None,
    settings: Settings | Sequence[Settings],
    tied: NDArray[np.int64] | None = None,
) -> list[Solution]:
    """Quantize weights [K, N_i] that share an input.

    Args:
        weights: float32.
        statistics: Of the input; None without data.
        settings: How, for all or for each.
        tied: [K], channels with the same number get the same scale.

    Returns:
        A solution a weight, all with the same scale, which is 1 unless all may be scaled.

    Raises:
        UsageError: The method needs data.
    """
    start = time.perf_counter()
    each = [settings] * len(weights) if isinstance(settings, Settings) else settings
    own = [one.at(len(weights[0])) for one in each]
    gram = None if statistics is None else statistics.gram()[0]
    if gram is not None:
        if sum(weight.size for weight in weights) < GPU_SOLVES:
            gram = host(gram)
        weights = [beside(gram, weight) for weight in weights]
    scale = None
    if all(one.scaling for one in own) and gram is not None:
        specs = [one.spec for one in own]
        found = find_scaling(weights, specs, gram, alphas=ALPHAS, tied=tied)
        scale = found.scale if found.alpha else None
    scaled = list(weights)
    if scale is not None and gram is not None:
        gram, scaled = scaled_gram(gram, scale), [scaled_weight(w, scale) for w in weights]
    solutions: dict[int, Solution] = {}
    for one in own:
        at = [i for i, other in enumerate(own) if other == one and i not in solutions]
        solutions |= zip(at, _alike(weights, scaled, at, statistics, gram, one), strict=True)
    share = (time.perf_counter() - start) / sum(w.size for w in weights)
    return [
        replace(solutions[i], scale=scale, seconds=share * weight.size)
        for i, weight in enumerate(weights)
    ]


def solve_experts(
    weight: Floats, statistics: InputStatistics | None, settings: Settings
) -> Solution:
    """Quantize the weights [E, K, N] of experts, each from the Gram matrix of its own input."""
    grams = [None] * len(weight) if statistics is None else list(statistics.gram())
    start, settings = time.perf_counter(), settings.at(weight.shape[1])
    pairs = zip(weight, grams, strict=True)
    found = [_solved(w, None if g is None else host(g), settings) for w, g in pairs]
    first = found[0].encoding
    encoding = Encoding(
        first.dtype,
        np.stack([each.encoding.scale for each in found]),
        np.stack([each.encoding.zero_point for each in found]),
        (1, *first.block),
    )
    loss = float(np.mean([each.loss for each in found]))
    quantized = QuantizedWeight(np.stack([each.codes for each in found]), encoding, loss)
    notes = "; ".join(dict.fromkeys(each.note for each in found if each.note))
    seconds = time.perf_counter() - start
    return Solution(quantized, None, None, loss, found[0].method, notes, seconds)


def _alike(
    weights: Sequence[Floats],
    scaled: Sequence[Floats],
    at: Sequence[int],
    statistics: InputStatistics | None,
    gram: Floats | None,
    settings: Settings,
) -> list[Solution]:
    """Quantize the weights at some places, which have the same settings."""
    if not at:
        return []
    weights, scaled = [weights[i] for i in at], [scaled[i] for i in at]
    if settings.uniform:
        return _uniform(weights, scaled, statistics, gram, settings)
    return [_matrix(w, statistics, gram, settings) for w in scaled]


def _uniform(
    weights: Sequence[Floats],
    scaled: Sequence[Floats],
    statistics: InputStatistics | None,
    gram: Floats | None,
    settings: Settings,
) -> list[Solution]:
    """Quantize all weights at once: output channels do not touch each other."""
    solved = _solved(np.concatenate(scaled, axis=1), gram, settings)
    before = solved.nearest
    if scaled[0] is not weights[0] or not before.size:
        plain = None if statistics is None else beside(weights[0], statistics.gram()[0])
        before = _nearest_losses(np.concatenate(weights, axis=1), plain, settings.spec)
    solutions, stop = [], 0
    for weight in scaled:
        columns = slice(stop, stop := stop + weight.shape[1])
        encoding = replace(
            solved.encoding,
            scale=solved.encoding.scale[:, columns],
            zero_point=solved.encoding.zero_point[:, columns],
        )
        # Scaling leaves the size of the result, and so the unit of the errors, as it was.
        size = solved.sizes[columns].sum()
        loss, nearest = (
            float(losses[columns].sum() / size) if size > 0 else 0.0
            for losses in (solved.losses, before)
        )
        codes = np.ascontiguousarray(solved.codes[:, columns])
        quantized = QuantizedWeight(codes, encoding, loss)
        solutions.append(Solution(quantized, None, nearest, loss, solved.method, solved.note))
    return solutions


def _solved(weight: Floats, gram: Floats | None, settings: Settings) -> Solved:
    """Quantize one weight [K, N] to uniform codes."""
    spec, search = settings.spec, settings.gptq.search
    if settings.method == "gptq":
        return solve_gptq(weight, spec, gram, options=settings.gptq, precise=False)
    if settings.method == "clipped":
        encoding = fit(weight, spec, search, gram)
        codes = round_to(weight, encoding, spec)
    elif settings.method == "rtn":
        encoding = fit(weight, spec, RangeSearch(signed=search.signed))
        codes = round_to(weight, encoding, spec)
    else:
        codes, encoding, _ = weight_quantizer(settings.method)(host(weight), spec, None)
    losses = column_losses(weight - beside(weight, dequantize(codes, encoding)), gram, weight.dtype)
    sizes = column_losses(weight, gram, weight.dtype)
    loss = float(losses.sum() / sizes.sum()) if sizes.sum() > 0 else 0.0
    # What rounding to nearest would give need not be computed twice.
    nearest = losses if settings.method == "rtn" else np.empty(0)
    return Solved(
        codes, encoding, loss, settings.method, losses=losses, sizes=sizes, nearest=nearest
    )


def _nearest_losses(weight: Floats, gram: Floats | None, spec: Spec) -> NDArray[np.float64]:
    """Return each column's loss where it is rounded to nearest with full ranges."""
    encoding = fit(weight, spec, RangeSearch(signed=spec.symmetric))
    rounded = dequantize(round_to(weight, encoding, spec), encoding)
    return column_losses(weight - beside(weight, rounded), gram, weight.dtype)


def _matrix(
    weight: Floats, statistics: InputStatistics | None, gram: Floats | None, settings: Settings
) -> Solution:
    found: QuantizedMatrix
    if settings.method == MIXED:
        # Without data no channel is known to have outliers.
        peak = np.zeros(len(weight)) if statistics is None else statistics.peak()
        found = split_outliers(weight, peak, gram, threshold=settings.threshold)
    elif settings.method == "squeeze":
        found = squeeze(weight, gram, bits=settings.bits)
    elif settings.method == "hqq":
        found = hqq_float(weight, settings.spec, gram)
    else:
        found = matrix_quantizer(settings.method)(weight, gram)
    return Solution(found, None, None, found.loss, settings.method)
