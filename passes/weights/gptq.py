"""GPTQ: round one input channel after the other, and let the rest make up for the error.

With H + damping = R R^T, R upper triangular, and E = W - Q, the layer's squared error is

    sum over k of R[k, k]^2 * (target[k] - Q[k])^2,
    target[k] = W[k] + sum over i < k of R[i, k] / R[k, k] * E[i],

so taking the nearest code of target[k], in order of k, is GPTQ's greedy choice. GPTQ itself updates
all later weights through the Cholesky factor of H^-1 instead; the choices are the same (Chee et
al. 2023, "QuIP", arXiv 2307.13304, theorem 6), and this form needs no inverse.
"""

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.arrays import beside, host
from qgraph.encoding import Encoding, Spec, dequantize
from qgraph.errors import UsageError
from qgraph.passes.weights.grid import (
    FULL,
    Floats,
    RangeSearch,
    fit,
    round_to,
    working,
)
from qgraph.passes.weights.loss import column_losses
from qgraph.passes.weights.refine import refine
from qgraph.passes.weights.sweep import permuted, round_in_order

# Damping is raised this often, tenfold each time, before the Gram matrix is given up.
_RAISES = 2
_DOUBLE = np.dtype(np.float64)


class SolverWarning(UserWarning):
    """A weight quantizer could not do what was asked and did the next best thing."""


@dataclass(frozen=True)
class GPTQOptions:
    """What can be chosen.

    Attributes:
        damping: Added to H's diagonal, as a share of its mean.
        order: Round the input channels with the largest diag(H) first. Groups stay runs of
            consecutive rows in the weight's own order, with scales found before anything is
            rounded ("static groups"), so the result needs no index of groups. Without it each
            group's scales are found from the updated weights when its turn comes.
        search: How each group's range is chosen.
        conditional: Weigh the errors of row k with R[k, k]^2 in that search: that is what an
            error costs after all later rows have made up for it as well as they can. Without it
            all rows count alike, as in the paper's code.
        sweeps: Passes of coordinate descent afterwards, on the damped H; see `refine`.
        refit: In each of them, fit the scales to the codes too.
    """

    damping: float = 0.01
    order: bool = False
    search: RangeSearch = FULL
    conditional: bool = True
    sweeps: int = 0
    refit: bool = False

    def __post_init__(self) -> None:
        """Refuse what can't be run."""
        if not (self.damping >= 0 and self.sweeps >= 0):
            raise UsageError(
                f"gptq with damping {self.damping}, {self.sweeps} sweeps",
                fix="give neither below 0",
            )


@dataclass(frozen=True)
class Solved:
    """A weight quantizer's result, with what it has to say.

    Attributes:
        codes: [K, N].
        encoding: Of the codes.
        loss: tr(E^T H E) / tr(W^T H W).
        method: Where the codes come from: "gptq", or "rtn" where that was better or GPTQ
            impossible.
        note: Why something else was done than asked; empty where all went well.
        losses: e^T H e of each output channel, [N].
        nearest: The same for rounding to nearest with full ranges.
        sizes: w^T H w of each output channel.
    """

    codes: NDArray[np.generic]
    encoding: Encoding
    loss: float
    method: str
    note: str = ""
    losses: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    nearest: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    sizes: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def gptq(
    weight: NDArray[np.floating],
    spec: Spec,
    gram: NDArray[np.floating] | None = None,
    *,
    options: GPTQOptions | None = None,
) -> tuple[NDArray[np.generic], Encoding, float]:
    """Quantize so that the layer's output, not the weight, stays close.

    Args:
        weight: float [K, N], output channels last; float64 is computed in float64, all else in
            float32.
        spec: Type, symmetry and granularity: axis 0 with a block for groups, axis 1 per channel.
        gram: H = X^T X, symmetric [K, K], of the layer's inputs; any positive factor will do.
        options: See `GPTQOptions`.

    Returns:
        codes [K, N], their encoding, and the loss as `round_to_nearest` gives it. The loss is
        never above that of round to nearest with the same ranges not searched.

    Raises:
        UsageError: There is no Gram matrix, or the spec has another granularity.
        ValueError: Shapes do not fit or the weight is not finite.

    Warns:
        SolverWarning: The Gram matrix is not usable; `solve_gptq` returns the reason instead.

    Source: Frantar et al. 2022, "GPTQ", arXiv 2210.17323, section 3 and algorithm 1.
    """
    solved = solve_gptq(weight, spec, gram, options=options)
    if solved.note:
        warnings.warn(solved.note, SolverWarning, stacklevel=2)
    return solved.codes, solved.encoding, solved.loss


def solve_gptq(
    weight: NDArray[np.floating],
    spec: Spec,
    gram: NDArray[np.floating] | None,
    *,
    options: GPTQOptions | None = None,
    precise: bool = True,
) -> Solved:
    """Do what `gptq` does, and return what it warns of as a note.

    Losses are added up in float64 if `precise`; float32 takes half the time. The other arguments
    are those of `gptq`.
    """
    options = options or GPTQOptions()
    values = working(weight)
    if gram is None:
        raise UsageError("gptq without a Gram matrix", fix="give calibration data, or use rtn")
    if gram.shape != (len(values), len(values)):
        raise ValueError(f"Gram matrix {gram.shape} for a weight {values.shape}")
    full = RangeSearch(signed=options.search.signed)
    encoding = fit(values, spec, full)
    nearest = round_to(values, encoding, spec)
    if not np.isfinite(gram).all():
        note = "the Gram matrix is not finite: rounded to nearest, every input alike"
        return _judged(values, nearest, encoding, None, _DOUBLE, "rtn", note)
    dtype = _DOUBLE if precise else values.dtype
    best = _judged(values, nearest, encoding, gram, dtype, "rtn")
    if not (host(np.diag(gram)) > 0).any():
        return replace(best, note="the Gram matrix is zero: rounded to nearest")
    rank = np.argsort(-host(np.diag(gram)), kind="stable") if options.order else None
    factor, damping, note = _factor(gram, rank, options.damping)
    best = replace(best, note=note)
    if factor is None:
        return best
    codes, encoding = round_in_order(
        values, spec, rank, factor, options.search, options.conditional
    )
    if options.sweeps:
        codes, encoding = refine(
            values,
            codes,
            encoding,
            spec,
            _damped(_cleaned(gram), damping),
            rank=rank,
            sweeps=options.sweeps,
            refit=options.refit,
        )
    losses = column_losses(_error(values, codes, encoding), gram, dtype)
    total = best.sizes.sum()
    loss = float(losses.sum() / total) if total > 0 else 0.0
    if best.loss < loss:
        return best
    return replace(best, codes=codes, encoding=encoding, loss=loss, method="gptq", losses=losses)


def _judged(
    weight: Floats,
    codes: NDArray[np.generic],
    encoding: Encoding,
    gram: NDArray[np.floating] | None,
    dtype: np.dtype[Any],
    method: str,
    note: str = "",
) -> Solved:
    losses = column_losses(_error(weight, codes, encoding), gram, dtype)
    sizes = column_losses(weight, gram, dtype)
    loss = float(losses.sum() / sizes.sum()) if sizes.sum() > 0 else 0.0
    return Solved(codes, encoding, loss, method, note, losses, losses, sizes)


def _error(weight: Floats, codes: NDArray[np.generic], encoding: Encoding) -> Floats:
    error: Floats = weight - beside(weight, dequantize(codes, encoding))
    return error


def _cleaned(gram: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return H with a mean diagonal of 1 and a positive diagonal; it must not be zero."""
    diagonal = np.diag(gram).astype(np.float64)
    # An input that never was anything but zero says nothing about its weights: with a diagonal
    # of its own and nothing beside it, they are rounded to nearest.
    dead = diagonal <= 0
    h = gram.astype(np.float64)
    h /= float(diagonal[~dead].mean())
    h[dead, :] = 0
    h[:, dead] = 0
    h[dead, dead] = 1
    return h


def _factor(
    gram: NDArray[np.floating], rank: NDArray[np.intp] | None, wanted: float
) -> tuple[NDArray[np.float64] | None, float, str]:
    """Return upper triangular R with H + damping = R R^T, or None; the damping; and a note.

    H, in the order of `rank`, is made anew for each try and not kept: of wide layers it takes
    gigabytes.
    """
    damping = wanted
    backwards = (np.arange(len(gram)) if rank is None else rank)[::-1]
    for attempt in range(_RAISES + 1):
        if attempt:
            damping = max(damping, 1e-3) * 10
        try:
            lower = np.linalg.cholesky(_damped(permuted(_cleaned(gram), backwards), damping))
        except np.linalg.LinAlgError:
            continue
        # On a GPU nothing is raised.
        if not np.isfinite(np.diag(lower)).all():
            continue
        note = f"singular with damping {wanted:g}; {damping:g} was used" if attempt else ""
        return lower[::-1, ::-1].astype(np.float64, copy=False), damping, _about_gram(note)
    note = f"singular even with damping {damping:g}: rounded to nearest"
    return None, damping, _about_gram(note)


def _damped(h: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """Add the damping to H itself."""
    np.fill_diagonal(h, np.diag(h) + damping)
    return h


def _about_gram(note: str) -> str:
    return f"the Gram matrix is {note}" if note else ""
