"""What weight quantizers want to know of a layer's input, summed up over samples."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.arrays import beside, gpu

# Rows that are multiplied together: at least so many, and as many as take so many bytes. Short
# products waste time, as does making their results symmetric.
_ROWS, _BYTES = 2048, 48 << 20


class InputStatistics:
    """Gram matrix and largest magnitudes of the rows x of an input, [..., K].

    The inputs of E experts, [E, ..., K], have a Gram matrix each.
    """

    def __init__(
        self, size: int, experts: int = 1, *, peaks: bool = False, device: bool = False
    ) -> None:
        """Start with no rows.

        Args:
            size: K.
            experts: E.
            peaks: Whether magnitudes are looked at; they take time.
            device: Whether to sum up on the GPU, where there is one.
        """
        self._size, self._experts = size, experts
        cupy = gpu() if device else None
        self._products: Any = (cupy or np).zeros((experts, size, size), np.float32)
        self._peak = np.zeros(size, np.float32) if peaks else None
        self._waiting: list[NDArray[np.float32]] = []
        self.rows = 0

    def add(self, x: NDArray[np.floating]) -> None:
        """Take in the rows of one sample."""
        if not x.size:
            return
        rows = x.astype(np.float32, copy=False).reshape(self._experts, -1, self._size)
        self._waiting.append(rows)
        count = sum(each.shape[1] for each in self._waiting)
        if count >= max(_ROWS, _BYTES // (4 * self._experts * self._size)):
            self._multiply()

    def finite(self) -> bool:
        """Whether all rows were: a sum of squares is not where a row is not."""
        self._multiply()
        return bool(np.isfinite(np.einsum("ekk->k", self._products)).all())

    def gram(self) -> NDArray[np.float32]:
        """Return X^T X / rows, float32 [E, K, K]; on the GPU where it was summed up there."""
        self._multiply()
        found: NDArray[np.float32] = self._products / np.float32(max(self.rows, 1))
        return found

    def peak(self) -> NDArray[np.float32]:
        """Return max |x|, [K]."""
        self._multiply()
        assert self._peak is not None
        return self._peak

    def _multiply(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting, axis=1)
        self._waiting.clear()
        with np.errstate(over="ignore", invalid="ignore"):
            for expert, part in enumerate(beside(self._products, rows)):
                # numpy sees that this is symmetric and computes one half.
                self._products[expert] += part.T @ part
        if self._peak is not None:
            np.maximum(self._peak, np.abs(rows).max(axis=(0, 1)), out=self._peak)
        self.rows += rows.shape[1]
