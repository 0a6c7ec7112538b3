"""One pass of rounding rows, each with the errors of the others in its target."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.arrays import beside, host
from qgraph.encoding import Encoding, Spec
from qgraph.passes.weights.grid import (
    Floats,
    RangeSearch,
    block_shape,
    choose,
    codes_of,
    fit,
    groups,
    snap,
)

# Rows that are rounded one by one before their errors reach the others in one product.
_LEAF = 16


def round_in_order(
    weight: Floats,
    spec: Spec,
    rank: NDArray[np.intp] | None,
    factor: NDArray[np.float64],
    search: RangeSearch,
    conditional: bool,
) -> tuple[NDArray[np.generic], Encoding]:
    """Round all rows, each with the errors of those before it, as `gptq` explains it.

    Args:
        weight: float [K, N].
        spec: Codes and granularity.
        rank: Order of the rows, with scales found before anything is rounded; None for the
            weight's own order, with each group's scales found from the updated weights.
        factor: R, [K, K], for that order.
        search: How ranges are chosen.
        conditional: Weigh each row's error with R[k, k]^2 while they are.
    """
    weights = host(np.diag(factor)) ** 2 if conditional else None
    if rank is None and spec.axis is not None:
        grouped = GroupedSweep(weight, factor, spec, search, weights)
        grouped.run_groups(list(groups(spec, len(weight))))
        encoding = Encoding(
            spec.dtype, np.stack(grouped.scales), np.stack(grouped.zeros), block_shape(spec)
        )
        return codes_of(grouped.codes, spec), encoding
    rank = np.arange(len(weight)) if rank is None else rank
    importance = None
    if weights is not None:
        importance = np.empty_like(weights)
        importance[rank] = weights
    encoding = fit(weight, spec, search, None if importance is None else beside(weight, importance))
    pull = (factor / np.diag(factor)).T
    order = beside(weight, rank)
    sweep = Sweep(weight[order], pull, spec)
    sweep.run(0, len(weight), *scales_of(encoding, spec, weight, rank))
    codes = np.empty_like(sweep.codes)
    codes[order] = sweep.codes
    return codes_of(codes, spec), encoding


def permuted(matrix: NDArray[Any], rank: NDArray[np.intp]) -> NDArray[Any]:
    """Return rows and columns of a matrix in another order."""
    order = beside(matrix, rank)
    found: NDArray[Any] = matrix[order][:, order]
    return found


def scales_of(
    encoding: Encoding, spec: Spec, weight: Floats, rank: NDArray[np.intp]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.intp]]:
    """Return scales and zero points, [groups, N], and which group each row in order takes."""
    scales = beside(weight, np.atleast_2d(encoding.scale).astype(weight.dtype, copy=False))
    zeros = beside(weight, np.atleast_2d(encoding.zero_point))
    length = spec.block if spec.axis == 0 else len(weight)
    return scales, zeros, rank // max(length, 1)


class Sweep:
    """One pass over the rows.

    The rows are halved again and again: the first half is rounded, one matrix product adds its
    changed errors to the targets of the second half. So all but the smallest steps are matrix
    products, whatever the group size, and each target has every earlier error in it in time.

    Attributes:
        weight: [K, N], rows in the order of rounding.
        pull: [K, K], of the weight's type: row k holds what an error in each other row adds to
            the target of row k. Only the part below the diagonal is used.
        target: What each row would best be, [K, N]: the weight and what errors add to it.
        error: weight - quantized, [K, N].
        change: What this pass has added to the error.
        codes: Whole numbers, [K, N], rows so far.
    """

    def __init__(
        self, weight: Floats, pull: NDArray[np.float64], spec: Spec, error: Floats | None = None
    ) -> None:
        """Start from a weight with no errors, or with those of codes it already has."""
        self.weight, self.spec = weight, spec
        self.pull = pull.astype(weight.dtype, order="C")
        self.change = np.zeros_like(weight)
        self.codes = np.zeros_like(weight)
        if error is None:
            self.error, self.target = np.zeros_like(weight), weight.copy()
        else:
            # The diagonal of `pull` is 1: a row's own error is no part of its target.
            self.error, self.target = error, weight - error + self.pull @ error

    def carry(self, start: int, middle: int, stop: int) -> None:
        """Add the changes of rows start to middle to the targets of rows middle to stop."""
        self.target[middle:stop] += self.pull[middle:stop, start:middle] @ self.change[start:middle]

    def run(
        self,
        start: int,
        stop: int,
        scales: Floats,
        zeros: NDArray[np.int64],
        which: NDArray[np.intp],
    ) -> None:
        """Round rows start to stop; row k takes scales[which[k]] and zeros[which[k]]."""
        if stop - start > _LEAF:
            middle = (start + stop) // 2
            self.run(start, middle, scales, zeros, which)
            self.carry(start, middle, stop)
            self.run(middle, stop, scales, zeros, which)
            return
        for k in range(start, stop):
            scale, zero = scales[which[k]], zeros[which[k]]
            target = self.target[k]
            if k > start:
                target = target + self.pull[k, start:k] @ self.change[start:k]
            steps = snap(target, scale, zero, self.spec)
            self.codes[k] = steps + zero
            error = self.weight[k] - steps * scale
            self.change[k] = error - self.error[k]
            self.error[k] = error


class GroupedSweep(Sweep):
    """GPTQ's pass, with each group's scales found from the weights as updated so far.

    Attributes:
        scales: Of each group so far, float32 [N].
        zeros: Zero points of each group so far, int64 [N].
        unit: R with each column divided by its diagonal entry, float64 [K, K].
        search: How ranges are chosen.
        importance: [K], factors on the rows' errors while they are.
    """

    def __init__(
        self,
        weight: Floats,
        factor: NDArray[np.float64],
        spec: Spec,
        search: RangeSearch,
        importance: NDArray[np.float64] | None,
    ) -> None:
        """Take R and what scales are chosen by."""
        self.unit = factor / np.diag(factor)
        super().__init__(weight, self.unit.T, spec)
        self.search, self.importance = search, importance
        self.scales: list[NDArray[np.float32]] = []
        self.zeros: list[NDArray[np.int64]] = []

    def run_groups(self, ranges: list[tuple[int, int]]) -> None:
        """Round whole groups; each group's scales are found when its targets are complete."""
        if len(ranges) > 1:
            half = len(ranges) // 2
            (start, _), (middle, _), (_, stop) = ranges[0], ranges[half], ranges[-1]
            self.run_groups(ranges[:half])
            self.carry(start, middle, stop)
            self.run_groups(ranges[half:])
            return
        ((start, stop),) = ranges
        weights = None
        if self.importance is not None:
            weights = beside(self.weight, self.importance[start:stop])
        scale, zero = choose(self.updated(start, stop), self.spec, self.search, weights)
        self.scales.append(scale)
        self.zeros.append(zero)
        which = np.zeros(stop, np.intp)
        steps = beside(self.weight, scale[None].astype(self.weight.dtype))
        self.run(start, stop, steps, beside(self.weight, zero[None]), which)

    def updated(self, start: int, stop: int) -> Floats:
        """Return rows start to stop as GPTQ has them when all before `start` are rounded.

        They are the weights that are best if none of the rows from `start` on were rounded: the
        errors F in them make up for all that came before, (I + pull) F = -(target - weight).
        """
        if not start:
            return self.weight[start:stop]
        came = self.target[start:stop] - self.weight[start:stop]
        lower = self.unit[start:stop, start:stop].T
        moved = np.linalg.solve(lower, came.astype(np.float64))
        result: Floats = (self.weight[start:stop] + moved).astype(self.weight.dtype)
        return result
