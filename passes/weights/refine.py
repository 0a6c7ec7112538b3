"""Improve codes and scales that a weight already has, in turns."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qgraph.arrays import beside, host
from qgraph.encoding import Encoding, Spec, dequantize
from qgraph.passes.weights.grid import Floats, codes_of, groups
from qgraph.passes.weights.sweep import Sweep, permuted, scales_of


def refine(
    weight: Floats,
    codes: NDArray[np.generic],
    encoding: Encoding,
    spec: Spec,
    gram: NDArray[np.floating],
    *,
    rank: NDArray[np.intp] | None = None,
    sweeps: int = 1,
    refit: bool = False,
) -> tuple[NDArray[np.generic], Encoding]:
    """Lower tr(E^T H E) by coordinate descent.

    In a sweep each row in turn takes the codes that are best while all other rows stay as they
    are: the nearest to W[k] + sum over i != k of H[k, i] / H[k, k] * E[i]. No sweep raises the
    loss.

    Args:
        weight: float32 or float64 [K, N].
        codes: [K, N], the codes to start from.
        encoding: Of the codes.
        spec: Codes and granularity.
        gram: H, symmetric [K, K], its diagonal positive.
        rank: Order of the rows; None for the weight's own.
        sweeps: How many.
        refit: After each sweep, replace the scales by those that are best for the codes.

    Returns:
        Codes and encoding; zero points stay as they are.

    Source: Chee et al. 2023, "QuIP", arXiv 2307.13304, supplement B ("greedy updates"); Nair and
        Suggala 2024, "CDQuant", arXiv 2406.17542.
    """
    h = gram.astype(np.float64, copy=False)
    rank = np.arange(len(weight)) if rank is None else rank
    pull = permuted(h / np.diag(h)[:, None], rank)
    order = beside(weight, rank)
    for _ in range(sweeps):
        error = (weight - beside(weight, dequantize(codes, encoding))).astype(weight.dtype)
        sweep = Sweep(weight[order], pull, spec, error[order])
        sweep.run(0, len(weight), *scales_of(encoding, spec, weight, rank))
        found = np.empty_like(sweep.codes)
        found[order] = sweep.codes
        codes = codes_of(found, spec)
        if refit and spec.axis is not None:
            encoding = refit_scales(weight, codes, encoding, spec, h)
    return codes, encoding


def refit_scales(
    weight: Floats,
    codes: NDArray[np.generic],
    encoding: Encoding,
    spec: Spec,
    gram: NDArray[np.floating],
) -> Encoding:
    """Return the scales with the least tr(E^T H E) for given codes and zero points.

    For one output channel with steps C (code - zero point), the loss is quadratic in the scales
    of its groups: A s = b with A[i, j] = C_i^T H_ij C_j and b[i] = C_i^T (H W)_i. A channel whose
    solution has a scale that is not finite or changes its sign keeps its old scales.

    Args:
        weight: float [K, N].
        codes: [K, N].
        encoding: Of the codes, with scales per column or per block of rows.
        spec: The granularity.
        gram: H, symmetric [K, K].
    """
    ranges = list(groups(spec, len(weight)))
    which = np.repeat(np.arange(len(ranges)), [stop - start for start, stop in ranges])
    steps = beside(
        weight, (codes.astype(np.int32) - encoding.zero_point[which]).astype(weight.dtype)
    )
    h = gram.astype(weight.dtype)
    asked = h @ weight
    right = np.empty((len(ranges), weight.shape[1]))
    left = np.empty((weight.shape[1], len(ranges), len(ranges)))
    for j, (start, stop) in enumerate(ranges):
        right[j] = host(np.einsum("kn,kn->n", steps[start:stop], asked[start:stop]))
        # A is symmetric: only the rows from `start` on are needed.
        products = h[start:, start:stop] @ steps[start:stop]
        for i, (a, b) in enumerate(ranges[j:], j):
            term = host(np.einsum("kn,kn->n", steps[a:b], products[a - start : b - start]))
            left[:, i, j] = left[:, j, i] = term
    old = encoding.scale.astype(np.float64)
    # A group without any step has no say: its scale stays.
    idle = np.einsum("nii->ni", left) <= 0
    column, index = np.nonzero(idle)
    left[column, index, :] = 0
    left[column, index, index] = 1
    right[index, column] = old[index, column]
    try:
        scale = np.linalg.solve(left, right.T[..., None])[..., 0].T
    except np.linalg.LinAlgError:
        return encoding
    good = np.isfinite(scale) & (scale * old > 0) & (np.abs(scale) < 4 * np.abs(old))
    kept = np.where(good.all(axis=0), scale, old).astype(np.float32)
    return replace(encoding, scale=kept)
