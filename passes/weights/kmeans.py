"""One-dimensional k-means of all columns of a matrix at once, without seeds to draw."""

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
# Runs of neighbouring weights that the exact search takes as one. Below so many rows it is exact.
_RUNS = 96
# Lloyd's steps at most.
_TURNS = 60
# Columns whose costs are held at a time.
_COLUMNS = 512


def best_levels(
    values: NDArray[np.floating], masses: NDArray[np.floating], count: int
) -> NDArray[np.float32]:
    """Return levels that minimise sum mass * (value - level)^2 in each column.

    The sorted values are cut into at most 96 runs, fine where levels will be dense; the best way
    to join runs into `count` clusters is found exactly, by dynamic programming; Lloyd's steps then
    move single values between neighbours. Up to 96 rows the result is the optimum.

    Args:
        values: float [K, N].
        masses: Not negative, [K, N].
        count: Levels a column.

    Returns:
        float32 [count, N], ascending. Levels that nothing is nearest to repeat a neighbour.

    Source: Wang and Song 2011, "Ckmeans.1d.dp", for the dynamic program; Lloyd 1982, "Least
        squares quantization in PCM".
    """
    order = np.argsort(values, axis=0, kind="stable")
    x = np.take_along_axis(values, order, axis=0).astype(np.float64)
    f = np.take_along_axis(masses, order, axis=0).astype(np.float64)
    result = np.empty((count, x.shape[1]), np.float32)
    for start in range(0, x.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        clusters = _Columns(x[:, columns], f[:, columns])
        result[:, columns] = clusters.lloyd(clusters.joined(count))
    return result


class _Columns:
    """Sorted values of some columns, with running sums from which any run's mean follows.

    Attributes:
        x: Values, ascending down each column, [K, N].
        f: Their masses.
        centre: Mean value of each column; sums are of x - centre, which keeps their digits.
        sums: Mass, moment and second moment of all rows before each, [3, K + 1, N].
    """

    def __init__(self, x: Doubles, f: Doubles) -> None:
        """Take sorted values and their masses."""
        self.x, self.f = x, f
        self.centre = x.mean(axis=0)
        moved = x - self.centre
        self.sums = np.zeros((3, len(x) + 1, x.shape[1]))
        for power in range(3):
            np.cumsum(f * moved**power, axis=0, out=self.sums[power, 1:])

    def joined(self, count: int) -> Doubles:
        """Return the levels of the best `count` clusters of whole runs."""
        cuts = self.runs()
        sums = np.take_along_axis(self.sums, cuts[None], axis=1)
        size = len(cuts)
        # costs[j, i]: squared error of runs i to j in one cluster.
        costs = np.full((size, size, self.x.shape[1]), np.inf)
        for j in range(size):
            costs[j, : j + 1] = _spread(sums[:, j : j + 1] - sums[:, : j + 1])
        least = [np.full((size, self.x.shape[1]), np.inf)]
        least[0][0] = 0.0
        for _ in range(count):
            before = least[-1]
            # A cluster may be empty, so that fewer values than levels are no special case.
            least.append(
                np.stack([(before[: j + 1] + costs[j, : j + 1]).min(axis=0) for j in range(size)])
            )
        return self._means(self._trace(least, costs, cuts))

    def runs(self) -> NDArray[np.intp]:
        """Where runs begin and end, [runs + 1, N].

        They are as dense as the cube root of the mass's density, which is how many good levels
        are spaced (Panter and Dite 1951, "Quantization distortion in pulse-count modulation with
        nonuniform spacing of levels").
        """
        rows, columns = self.x.shape
        if rows <= _RUNS:
            return np.broadcast_to(np.arange(rows + 1)[:, None], (rows + 1, columns)).copy()
        # density^(1/3) * gap, with density = mass / gap
        mass = np.sqrt(self.f[1:] * self.f[:-1])
        parts = np.cumsum(np.cbrt(mass) * np.cbrt(np.diff(self.x, axis=0)) ** 2, axis=0)
        shares = np.arange(1, _RUNS) / _RUNS
        cuts = np.zeros((_RUNS + 1, columns), np.intp)
        cuts[-1] = rows
        for n in range(columns):
            cuts[1:-1, n] = np.searchsorted(parts[:, n], shares * parts[-1, n]) + 1
        return cuts

    def _trace(
        self, least: list[Doubles], costs: Doubles, cuts: NDArray[np.intp]
    ) -> NDArray[np.intp]:
        """Follow the least costs back to the cuts between clusters, [count + 1, N]."""
        columns = np.arange(self.x.shape[1])
        at = np.full(len(columns), len(cuts) - 1)
        found = [cuts[at, columns]]
        for before in least[-2::-1]:
            at = (before + costs[at, :, columns].T).argmin(axis=0)
            found.append(cuts[at, columns])
        return np.stack(found[::-1])

    def _means(self, cuts: NDArray[np.intp]) -> Doubles:
        """Mean of each cluster; one without mass repeats the level before it."""
        mass, moment, _ = np.diff(np.take_along_axis(self.sums, cuts[None], axis=1), axis=1)
        full = mass > 0
        levels = np.where(full, moment / np.where(full, mass, 1), np.nan)
        for index in range(1, len(levels)):
            levels[index] = np.where(full[index], levels[index], levels[index - 1])
            full[index] |= full[index - 1]
        for index in range(len(levels) - 2, -1, -1):
            levels[index] = np.where(full[index], levels[index], levels[index + 1])
            full[index] |= full[index + 1]
        means: Doubles = np.where(full, levels, 0.0) + self.centre
        return means

    def lloyd(self, levels: Doubles) -> Doubles:
        """Give each value to its nearest level and take means, until nothing moves."""
        ends = np.full((1, levels.shape[1]), len(self.x))
        last = None
        for _ in range(_TURNS):
            borders = (levels[1:] + levels[:-1]) / 2
            cuts = np.concatenate([np.zeros_like(ends), self.find(borders), ends])
            if last is not None and np.array_equal(cuts, last):
                break
            last = cuts
            levels = self._means(cuts)
        return levels

    def find(self, borders: Doubles) -> NDArray[np.intp]:
        """How many values of each column are at or below each border, [count - 1, N]."""
        low = np.zeros(borders.shape, np.intp)
        high = np.full(borders.shape, len(self.x))
        while np.any(low < high):
            middle = (low + high) // 2
            inside = low < high
            value = np.take_along_axis(self.x, np.minimum(middle, len(self.x) - 1), axis=0)
            right = inside & (value <= borders)
            low, high = np.where(right, middle + 1, low), np.where(inside & ~right, middle, high)
        return low


def _spread(sums: Doubles) -> Doubles:
    """Squared error about the mean, of mass, moment and second moment, [3, ..., N]."""
    mass, moment, second = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = second - np.where(mass > 0, moment * moment / mass, 0.0)
    result: Doubles = np.maximum(spread, 0.0)
    return result
