"""AWQ: scale input channels up before rounding where the data is large.

With a positive s for each input channel, X W = (X / s) (s W). Rounding s W leaves the error
E = W - Q(s W) / s, small in the rows with a large s. s = mean|x|^alpha, one alpha for all layers
that read the same X, chosen by the sum of tr(E^T H E) over them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgraph.arrays import beside, host
from qgraph.encoding import Encoding, Spec
from qgraph.passes.weights.grid import FULL, Floats, RangeSearch, simulate, working
from qgraph.passes.weights.loss import layer_loss
from qgraph.passes.weights.rtn import round_to_nearest

ALPHAS = tuple(step / 10 for step in range(11))
# A channel's magnitude counts as at least this share of the mean one: a channel that the data
# never used must not make its neighbours' scales meaningless.
_LEAST = 1e-4

Quantized = tuple[NDArray[np.generic], Encoding, float]


@dataclass(frozen=True, eq=False)
class Scaling:
    """What input channels are scaled by.

    Attributes:
        scale: float32 [K]: rows of the weights are multiplied by it, inputs divided. Its
            geometric mean is 1.
        alpha: The power of the magnitudes that it is.
        losses: (alpha, sum of tr(E^T H E) over the layers / sum of tr(W^T H W)) of all tried.
    """

    scale: NDArray[np.float32]
    alpha: float
    losses: tuple[tuple[float, float], ...]


@dataclass(frozen=True, eq=False)
class AWQResult:
    """Scaled and quantized weights.

    Attributes:
        scaling: The scale, to be folded into what produces the input, or divided there.
        layers: For each weight, codes, encoding and loss of scale * weight. The loss is relative
            and, as the inputs are divided, that of the layer's own output.
    """

    scaling: Scaling
    layers: tuple[Quantized, ...]


def awq(
    weights: Sequence[NDArray[np.floating]],
    spec: Spec,
    gram: NDArray[np.floating],
    magnitude: NDArray[np.floating] | None = None,
    *,
    quantizer: Callable[[Floats, Spec, Floats], Quantized] = round_to_nearest,
    alphas: Sequence[float] = ALPHAS,
    search: RangeSearch = FULL,
    tied: NDArray[np.integer] | None = None,
) -> AWQResult:
    """Scale and quantize layers that share an input.

    Args:
        weights: float [K, N_i] each, output channels last.
        spec: Type, symmetry and granularity.
        gram: H = X^T X, float [K, K], of the shared input.
        magnitude: mean|x| of each input channel, [K]; None takes the root mean square, which is
            the root of the Gram matrix's diagonal.
        quantizer: Quantizes the scaled weights, with the scaled input's Gram matrix:
            `round_to_nearest`, `clipped_rounding`, `gptq` or one of those with its options bound.
        alphas: Powers tried.
        search: How ranges are chosen while alphas are compared.
        tied: [K], channels with the same number get the same scale; see `find_scaling`.

    Raises:
        UsageError: The spec has another granularity.
        ValueError: Shapes do not fit, or there is no weight or no alpha.

    Source: Lin et al. 2023, "AWQ", arXiv 2306.00978, section 3.2, with the exact layer loss from
        the Gram matrix in place of a loss on samples.
    """
    scaling = find_scaling(weights, spec, gram, magnitude, alphas=alphas, search=search, tied=tied)
    inner = scaled_gram(gram, scaling.scale)
    layers = [quantizer(scaled_weight(w, scaling.scale), spec, inner) for w in weights]
    return AWQResult(scaling, tuple(layers))


def scaled_weight(weight: NDArray[np.floating], scale: NDArray[np.float32]) -> Floats:
    """Return scale * weight, rows scaled."""
    result: Floats = working(weight) * beside(weight, scale)[:, None]
    return result


def scaled_gram(gram: NDArray[np.floating], scale: NDArray[np.float32]) -> Floats:
    """Return the Gram matrix of X / scale."""
    factor = beside(gram, scale)
    result: Floats = gram / factor / factor[:, None]
    return result


def find_scaling(
    weights: Sequence[NDArray[np.floating]],
    spec: Spec | Sequence[Spec],
    gram: NDArray[np.floating],
    magnitude: NDArray[np.floating] | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
    search: RangeSearch = FULL,
    tied: NDArray[np.integer] | None = None,
) -> Scaling:
    """Choose the scale of the input channels; arguments as `awq` takes them.

    Args:
        weights: float [K, N_i] each.
        spec: Type, symmetry and granularity, of all or of each.
        gram: float [K, K].
        magnitude: mean|x|, [K].
        alphas: Powers tried; of equal ones the first wins.
        search: How ranges are chosen while alphas are compared.
        tied: [K], numbers from 0; channels with the same one get their magnitudes' mean. So the
            scale of an attention's output projection can be folded into the value projection
            where several query heads read one value head.
    """
    size = len(gram)
    if not weights or not len(alphas) or any(len(w) != size for w in weights):
        shapes = [w.shape for w in weights]
        raise ValueError(f"weights {shapes}, {len(alphas)} alphas, Gram matrix {gram.shape}")
    if magnitude is None:
        magnitude = np.sqrt(np.maximum(host(np.diag(gram)), 0))
    powers = _log_magnitude(magnitude.astype(np.float64), tied)
    h = gram.astype(np.result_type(gram.dtype, np.float32), copy=False)
    # A mean diagonal of 1 keeps float32 products in range.
    mean = float(np.diag(h).mean())
    h = h / h.dtype.type(mean if mean > 0 else 1)
    specs = [spec] * len(weights) if isinstance(spec, Spec) else list(spec)
    values = _joined([working(w) for w in weights], specs)
    total = sum(layer_loss(w, h, w.dtype) for w, _ in values)
    best, least, losses = np.ones(size, np.float32), np.inf, []
    alpha_of_best = 0.0
    for alpha in alphas:
        scale = np.exp(alpha * powers).astype(np.float32)
        loss = 0.0
        for w, own in values:
            factor = beside(w, scale)[:, None]
            error = simulate(w * factor, own, search)
            error /= factor
            error -= w
            loss += layer_loss(error, h, w.dtype)
        losses.append((float(alpha), loss / total if total > 0 else 0.0))
        if loss < least:
            best, least, alpha_of_best = scale, loss, float(alpha)
    return Scaling(best, alpha_of_best, tuple(losses))


def _joined(weights: Sequence[Floats], specs: Sequence[Spec]) -> list[tuple[Floats, Spec]]:
    """Make one of the weights with one spec, as output channels do not touch each other."""
    found: list[tuple[Floats, Spec]] = []
    for spec in dict.fromkeys(specs):
        own = [w for w, each in zip(weights, specs, strict=True) if each == spec]
        if spec.axis is not None:
            own = [np.concatenate(own, axis=1)]
        found += [(w, spec) for w in own]
    return found


def _log_magnitude(
    magnitude: NDArray[np.float64], tied: NDArray[np.integer] | None
) -> NDArray[np.float64]:
    """Logarithms of the magnitudes, shifted to a mean of 0."""
    if tied is not None:
        sums = np.bincount(tied, weights=magnitude)
        magnitude = (sums / np.maximum(np.bincount(tied), 1))[tied]
    mean = magnitude.mean()
    if not mean > 0:
        return np.zeros_like(magnitude)
    logarithms: NDArray[np.float64] = np.log(np.maximum(magnitude, _LEAST * mean))
    centred: NDArray[np.float64] = logarithms - logarithms.mean()
    return centred
