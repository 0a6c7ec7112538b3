"""Results of weight quantizers that are not codes with one uniform encoding."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import expand


class QuantizedMatrix(Protocol):
    """A quantized weight that knows its own simulation.

    Attributes:
        loss: tr(E^T H E) / tr(W^T H W) for E = weight - dequantize(), H the Gram matrix or 1.
    """

    @property
    def loss(self) -> float:
        """Relative loss."""

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weight, float32 [K, N], exactly as the lowered form computes it."""

    def bits(self) -> float:
        """Return the stored bits a weight, scales and all."""


@dataclass(frozen=True, eq=False)
class FloatZero:
    """Uniform codes with zero points that are not whole numbers.

    Attributes:
        codes: uint8 [K, N].
        scale: float32, one a block: [blocks, N].
        zero_point: float32, same shape; weight = (code - zero_point) * scale.
        block: Rows and columns of a block, as in `Encoding.block`.
        width: Bits of a code.
        loss: Relative loss.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.float32]
    block: tuple[int, ...]
    width: int
    loss: float = 0.0

    def dequantize(self) -> NDArray[np.float32]:
        """Return (codes - zero_point) * scale in float32."""
        scale = expand(self.scale, self.block, self.codes.shape)
        zero = expand(self.zero_point, self.block, self.codes.shape)
        result: NDArray[np.float32] = (self.codes.astype(np.float32) - zero) * scale
        return result

    def bits(self) -> float:
        """Codes, and two floats a block."""
        return self.width + 64 * self.scale.size / self.codes.size


@dataclass(frozen=True, eq=False)
class BlockCodebook:
    """4-bit indices into a fixed table, times the largest magnitude of their block.

    Blocks are runs of `block` weights of the transposed weight [N, K], row after row: where K is
    no multiple of `block`, a block reaches from one output channel into the next. This is the
    order that com.microsoft.MatMulBnb4 has.

    Attributes:
        codes: uint8 [K, N], 0 to 15.
        absmax: float32 [ceil(K * N / block)].
        table: float32 [16], the value of each code.
        block: Weights in a block.
        absmax_bits: Stored bits of an entry of `absmax`, 32 unless quantized itself.
        loss: Relative loss.
    """

    codes: NDArray[np.uint8]
    absmax: NDArray[np.float32]
    table: NDArray[np.float32]
    block: int
    absmax_bits: float = 32.0
    loss: float = 0.0

    def dequantize(self) -> NDArray[np.float32]:
        """Return table[code] * absmax of the block."""
        rows, columns = self.codes.shape
        size = self.codes.size
        values = self.table[self.codes.T.reshape(-1)]
        values = values * np.repeat(self.absmax, self.block)[:size]
        return np.ascontiguousarray(values.reshape(columns, rows).T)

    def bits(self) -> float:
        """Codes and absmax."""
        return 4 + self.absmax_bits * self.absmax.size / self.codes.size


@dataclass(frozen=True, eq=False)
class ChannelCodebook:
    """Indices into a table of each output channel, plus a sparse correction.

    Attributes:
        codes: uint8 [K, N], below 2 ** bits.
        codebook: float32 [2 ** bits, N].
        indices: int64 [M, 2], (row, column) of the sparse part, in row-major order.
        values: float32 [M], added to the looked-up weight there.
        width: Bits of a code.
        loss: Relative loss.
    """

    codes: NDArray[np.uint8]
    codebook: NDArray[np.float32]
    indices: NDArray[np.int64]
    values: NDArray[np.float32]
    width: int
    loss: float = 0.0

    def dense(self) -> NDArray[np.float32]:
        """Return codebook[codes], float32 [K, N], without the sparse part."""
        result: NDArray[np.float32] = np.take_along_axis(self.codebook, self.codes, axis=0)
        return result

    def dequantize(self) -> NDArray[np.float32]:
        """Return the looked-up weight with the sparse part added, in float32."""
        weight = self.dense()
        weight[self.indices[:, 0], self.indices[:, 1]] += self.values
        return weight

    def bits(self) -> float:
        """Codes, tables in float32, and a float32 and two 16-bit indices a sparse entry."""
        extra = 32 * self.codebook.size + 64 * len(self.values)
        return self.width + extra / self.codes.size


@dataclass(frozen=True, eq=False)
class MixedInt8:
    """Some input channels in float, the others in int8 with a scale an output channel.

    Attributes:
        regular: int64 [R], ascending: the rows that are in int8.
        codes: int8 [R, N].
        scale: float32 [N].
        outliers: int64 [K - R], ascending: the rows left in float.
        weight: float32 [K - R, N], those rows.
        loss: Relative loss.
    """

    regular: NDArray[np.int64]
    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    outliers: NDArray[np.int64]
    weight: NDArray[np.float32]
    loss: float = 0.0

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weight with all rows in their places."""
        rows = len(self.regular) + len(self.outliers)
        result = np.empty((rows, len(self.scale)), np.float32)
        result[self.regular] = self.codes.astype(np.float32) * self.scale
        result[self.outliers] = self.weight
        return result

    def bits(self) -> float:
        """int8 and float32 rows, scales, and a 64-bit index a row."""
        rows = len(self.regular) + len(self.outliers)
        total = 8 * self.codes.size + 32 * self.weight.size + 32 * self.scale.size + 64 * rows
        return total / (rows * len(self.scale))
