"""AdaRound: rounds each weight up or down so that the layer's result, not the weight, stays near."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Rows of a weight that are rounded before the others hear of it, all at once.
_BLOCK = 64
# Columns that are rounded at a time: they don't depend on each other, and memory is bounded.
_COLUMNS = 1024
# A flip must gain this share of the column's error, so that rounding errors can't flip for ever.
_GAIN = 1e-9


@dataclass(frozen=True, eq=False)
class _Problem:
    """Columns to round; K inputs, N outputs, G groups that don't depend on each other.

    Attributes:
        weight: float64 [G, K, N].
        scale: float64 [G, K, N].
        low: Code below the weight, float64 [G, K, N].
        high: Code above it; the same as `low` where there is no choice.
        zero: Zero point, float64 [G, K, N].
        gram: float64 [G, K, K], positive definite.
    """

    weight: Floats
    scale: Floats
    low: Floats
    high: Floats
    zero: Floats
    gram: Floats

    def error(self, codes: Floats) -> Floats:
        """Quantized minus float weight."""
        return (codes - self.zero) * self.scale - self.weight

    def losses(self, codes: Floats) -> Floats:
        """e^T H e of every column, float64 [G, N]."""
        return column_losses(self.error(codes), self.gram)


def round_adaptively(
    weight: NDArray[np.floating],
    codes: NDArray[np.generic],
    scale: NDArray[np.floating],
    zero_point: NDArray[np.integer],
    limits: tuple[int, int],
    gram: NDArray[np.floating],
    *,
    damping: float = 0.01,
    sweeps: int = 4,
) -> NDArray[np.int64]:
    """Choose between the codes below and above each weight, on a grid that is given.

    A layer with inputs X and weight error E errs by ||X E||^2 = tr(E^T H E), H = X^T X. Which
    roundings make that least is a quadratic binary problem for each output. AdaRound relaxes it
    and descends its gradient over X; here H alone is needed: the weights are first rounded one
    after the other, each error being made good by those still to come (GPTQ), then single weights
    are flipped while that lowers the error. Columns for which this finds nothing better than
    `codes` keep them, so no column is ever worse.

    Args:
        weight: float [G, K, N]: groups, inputs, outputs of a group; G is 1 but for grouped
            convolutions.
        codes: Codes to start from, [G, K, N].
        scale: Step of the grid, broadcastable to [G, K, N].
        zero_point: Code of 0, broadcastable to [G, K, N].
        limits: Lowest and highest code.
        gram: X^T X, float [G, K, K].
        damping: Share of H's mean diagonal that is added to its diagonal, so that what the
            samples don't show is not free.
        sweeps: How often all weights are looked at for flips, at most.

    Returns:
        Codes [G, K, N].

    Raises:
        ValueError: The Gram matrix is not finite.

    Source:
        Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
        equations 13 and 20 (the problem); Frantar et al. 2022, "GPTQ: Accurate Post-Training
        Quantization for Generative Pre-trained Transformers", algorithm 1 (the first pass).
    """
    start = np.asarray(codes).astype(np.float64)
    whole = _problem(weight, scale, zero_point, limits, gram, damping)
    order = np.argsort(-np.diagonal(whole.gram, axis1=1, axis2=2), axis=1, kind="stable")
    found = start.copy()
    # A group whose inputs were all zero says nothing.
    alive = np.asarray(np.diagonal(whole.gram, axis1=1, axis2=2).any(axis=1), np.bool_)
    if not alive.any():
        return found.astype(np.int64)
    factor = _inverse_factor(whole.gram[alive], order[alive])
    for first in range(0, start.shape[2], _COLUMNS):
        some = slice(first, first + _COLUMNS)
        part = _take(whole, alive, some)
        tried = _descend(part, _in_sequence(part, factor, order[alive]), sweeps)
        before = start[alive, :, some]
        better = part.losses(tried) < part.losses(before) * (1 - _GAIN)
        found[alive, :, some] = np.where(better[:, None, :], tried, before)
    return found.astype(np.int64)


def column_losses(error: NDArray[np.floating], gram: NDArray[np.floating]) -> Floats:
    """e^T H e of every column of an error [G, K, N] with `gram` [G, K, K], float64 [G, N]."""
    losses: Floats = np.einsum("gkn,gkn->gn", error, gram @ error)
    return losses


def _problem(
    weight: NDArray[np.floating],
    scale: NDArray[np.floating],
    zero_point: NDArray[np.integer],
    limits: tuple[int, int],
    gram: NDArray[np.floating],
    damping: float,
) -> _Problem:
    if not np.isfinite(gram).all():
        raise ValueError("the Gram matrix is not finite")
    exact = np.asarray(weight, np.float64)
    step = np.broadcast_to(np.asarray(scale, np.float64), exact.shape)
    zero = np.broadcast_to(np.asarray(zero_point, np.float64), exact.shape)
    place = exact / step + zero
    # Each group in its own unit: products of tiny inputs must not vanish beside others.
    damped = np.array(gram, np.float64)
    diagonal = np.einsum("gkk->gk", damped)
    mean = diagonal.mean(axis=1, keepdims=True)
    damped /= np.where(mean > 0, mean, 1)[:, :, None]
    diagonal += damping * (mean > 0)
    return _Problem(
        exact,
        step,
        np.clip(np.floor(place), *limits),
        np.clip(np.ceil(place), *limits),
        zero,
        damped,
    )


def _take(whole: _Problem, groups: NDArray[np.bool_], columns: slice) -> _Problem:
    names = ("weight", "scale", "low", "high", "zero")
    parts = {name: getattr(whole, name)[groups, :, columns] for name in names}
    return replace(whole, **parts, gram=whole.gram[groups])


def _inverse_factor(gram: Floats, order: NDArray[np.intp]) -> Floats:
    """Upper triangular U with U^T U = H^-1, rows and columns of H in `order`."""
    sorted_rows = np.take_along_axis(gram, order[:, :, None], axis=1)
    in_order = np.take_along_axis(sorted_rows, order[:, None, :], axis=2)
    factor: Floats = np.linalg.cholesky(np.linalg.inv(in_order)).transpose(0, 2, 1)
    return factor


def _in_sequence(problem: _Problem, factor: Floats, order: NDArray[np.intp]) -> Floats:
    """Round row after row, those with the largest inputs first; the rest makes up for each."""
    rows = order[:, :, None]
    left, scale, low, high, zero = (
        np.take_along_axis(array, rows, axis=1)
        for array in (problem.weight, problem.scale, problem.low, problem.high, problem.zero)
    )
    codes = np.empty_like(left)
    count = left.shape[1]
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = np.empty((len(left), stop - start, left.shape[2]))
        for k in range(start, stop):
            code = np.clip(np.rint(left[:, k] / scale[:, k] + zero[:, k]), low[:, k], high[:, k])
            error = left[:, k] - (code - zero[:, k]) * scale[:, k]
            error /= factor[:, k, k, None]
            left[:, k + 1 : stop] -= factor[:, k, k + 1 : stop, None] * error[:, None, :]
            codes[:, k], errors[:, k - start] = code, error
        left[:, stop:] -= factor[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    found = np.empty_like(codes)
    np.put_along_axis(found, rows, codes, axis=1)
    return found


def _descend(problem: _Problem, codes: Floats, sweeps: int) -> Floats:
    """Flip single weights while that lowers the error of their column."""
    gram, count = problem.gram, codes.shape[1]
    codes = codes.copy()
    error = problem.error(codes)
    both = problem.low + problem.high
    least = _GAIN * problem.losses(codes)
    for _ in range(sweeps):
        gradient = gram @ error
        flips = 0
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            moved = np.zeros((len(codes), stop - start, codes.shape[2]))
            for k in range(start, stop):
                # What the block's own flips did to this row is not in `gradient` yet.
                before = gram[:, k : k + 1, start:k] @ moved[:, : k - start]
                slope = gradient[:, k] + before[:, 0]
                other = both[:, k] - codes[:, k]
                step = (other - codes[:, k]) * problem.scale[:, k]
                flip = (2 * slope + step * gram[:, k, k, None]) * step < -least
                moved[:, k - start] = np.where(flip, step, 0)
                codes[:, k] = np.where(flip, other, codes[:, k])
                flips += int(flip.sum())
            error[:, start:stop] += moved
            gradient[:, stop:] += gram[:, stop:, start:stop] @ moved
        if flips == 0:
            break
    return codes
