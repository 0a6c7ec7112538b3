"""Quantizes the weights of layers that share an input, from statistics of it: arrays only."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import Encoding, Spec, dequantize
from qgraph.facts import QuantizedWeight
from qgraph.passes.weight_only.statistics import InputStatistics
from qgraph.passes.weights import (
    MATRIX_QUANTIZERS,
    WEIGHT_QUANTIZERS,
    matrix_quantizer,
    weight_quantizer,
)
from qgraph.passes.weights.awq import find_scaling, scaled_gram, scaled_weight
from qgraph.passes.weights.clipped import clipped_rounding
from qgraph.passes.weights.gptq import GPTQOptions, solve_gptq
from qgraph.passes.weights.grid import RangeSearch, fit, round_to
from qgraph.passes.weights.hqq import hqq_float
from qgraph.passes.weights.loss import relative_loss
from qgraph.passes.weights.outliers import split_outliers
from qgraph.passes.weights.results import QuantizedMatrix
from qgraph.passes.weights.squeeze import squeeze

Floats = NDArray[np.floating]
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
    """

    method: str
    spec: Spec
    scaling: bool = False
    gptq: GPTQOptions = field(default_factory=GPTQOptions)
    bits: int = 4
    threshold: float = 6.0
    float_zero: bool = False

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

    def effective(self) -> NDArray[np.float32]:
        """Return what the layer multiplies its unscaled input by, float32 [K, N]."""
        if isinstance(self.weight, QuantizedWeight):
            found = dequantize(self.weight.codes, self.weight.encoding)
        else:
            found = self.weight.dequantize()
        return found if self.scale is None else found / self.scale[:, None]


def solve_group(
    weights: Sequence[Floats],
    statistics: InputStatistics | None,
    settings: Settings,
    tied: NDArray[np.int64] | None = None,
) -> list[Solution]:
    """Quantize weights [K, N_i] that share an input.

    Args:
        weights: float32.
        statistics: Of the input; None without data.
        settings: How.
        tied: [K], channels with the same number get the same scale.

    Returns:
        A solution a weight, all with the same scale.

    Raises:
        UsageError: The method needs data.
    """
    start = time.perf_counter()
    gram = None if statistics is None else statistics.gram()[0]
    scale = None
    if settings.scaling and statistics is not None and gram is not None:
        found = find_scaling(weights, settings.spec, gram, tied=tied)
        scale = found.scale if found.alpha else None
    scaled = list(weights)
    if scale is not None and gram is not None:
        gram, scaled = scaled_gram(gram, scale), [scaled_weight(w, scale) for w in weights]
    if settings.uniform:
        solutions = _uniform(weights, scaled, statistics, gram, settings)
    else:
        solutions = [_matrix(w, statistics, gram, settings) for w in scaled]
    share = (time.perf_counter() - start) / sum(w.size for w in weights)
    return [
        replace(solution, scale=scale, seconds=share * weight.size)
        for solution, weight in zip(solutions, weights, strict=True)
    ]


def solve_experts(
    weight: Floats, statistics: InputStatistics | None, settings: Settings
) -> Solution:
    """Quantize the weights [E, K, N] of experts, each from the Gram matrix of its own input."""
    spec = settings.spec
    grams = [None] * len(weight) if statistics is None else list(statistics.gram())
    start = time.perf_counter()
    found = [_solved(w, g, settings) for w, g in zip(weight, grams, strict=True)]
    encodings = [encoding for _, encoding, _, _ in found]
    encoding = Encoding(
        spec.dtype,
        np.stack([e.scale for e in encodings]),
        np.stack([e.zero_point for e in encodings]),
        (1, *encodings[0].block),
    )
    codes = np.stack([codes for codes, _, _, _ in found])
    losses = [
        relative_loss(w, dequantize(c, e), g)
        for w, g, (c, e, _, _) in zip(weight, grams, found, strict=True)
    ]
    loss = float(np.mean(losses))
    quantized = QuantizedWeight(codes, encoding, loss)
    notes = "; ".join(dict.fromkeys(note for *_, note in found if note))
    seconds = time.perf_counter() - start
    return Solution(quantized, None, None, loss, found[0][2], notes, seconds)


def _uniform(
    weights: Sequence[Floats],
    scaled: Sequence[Floats],
    statistics: InputStatistics | None,
    gram: Floats | None,
    settings: Settings,
) -> list[Solution]:
    """Quantize all weights at once: output channels do not touch each other."""
    codes, encoding, method, note = _solved(np.concatenate(scaled, axis=1), gram, settings)
    plain = None if statistics is None else statistics.gram()[0]
    solutions, stop = [], 0
    for original, weight in zip(weights, scaled, strict=True):
        columns = slice(stop, stop := stop + weight.shape[1])
        own = replace(
            encoding,
            scale=encoding.scale[:, columns],
            zero_point=encoding.zero_point[:, columns],
        )
        part = np.ascontiguousarray(codes[:, columns])
        loss = relative_loss(weight, dequantize(part, own), gram)
        nearest = fit(original, settings.spec, RangeSearch(signed=settings.spec.symmetric))
        rounded = dequantize(round_to(original, nearest, settings.spec), nearest)
        before = relative_loss(original, rounded, plain)
        quantized = QuantizedWeight(part, own, loss)
        solutions.append(Solution(quantized, None, before, loss, method, note))
    return solutions


def _solved(
    weight: Floats, gram: Floats | None, settings: Settings
) -> tuple[NDArray[np.generic], Encoding, str, str]:
    """Return codes, encoding, what they come from, and a note."""
    if settings.method == "gptq":
        solved = solve_gptq(weight, settings.spec, gram, options=settings.gptq)
        return solved.codes, solved.encoding, solved.method, solved.note
    if settings.method == "clipped":
        codes, encoding, _ = clipped_rounding(
            weight, settings.spec, gram, search=settings.gptq.search, blockwise=gram is not None
        )
    elif settings.method == "rtn":
        encoding = fit(weight, settings.spec, RangeSearch(signed=settings.spec.symmetric))
        codes = round_to(weight, encoding, settings.spec)
    else:
        codes, encoding, _ = weight_quantizer(settings.method)(weight, settings.spec, gram)
    return codes, encoding, settings.method, ""


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
