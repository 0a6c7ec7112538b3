"""NF4 and FP4: 4-bit indices into a table, scaled by the largest magnitude of each block."""

from dataclasses import replace

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qgraph.errors import UsageError
from qgraph.passes.weights.loss import relative_loss
from qgraph.passes.weights.results import BlockCodebook

# Dettmers et al. 2023, "QLoRA", arXiv 2305.14314, appendix E.
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
# Sign, two bits of exponent, one of mantissa, in bitsandbytes' coding: the largest value, 12, is
# 1, and the smallest, 0.0625, is 1 / 192. Bit 3 of the code is the sign.
_FP4 = np.array([0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]) / 12
FP4 = np.concatenate([_FP4, -_FP4]).astype(np.float32)

TABLES = {"nf4": NF4, "fp4": FP4}
# Entries of absmax that share a scale when they are quantized themselves (QLoRA, section 3).
_SECOND_BLOCK = 256
_LARGEST_E4M3 = 448.0


def nf4(weight: NDArray[np.floating], gram: NDArray[np.floating] | None = None) -> BlockCodebook:
    """Quantize to the 16 levels of NF4 in blocks of 64; see `table_rounding`."""
    return table_rounding(weight, gram, table="nf4")


def fp4(weight: NDArray[np.floating], gram: NDArray[np.floating] | None = None) -> BlockCodebook:
    """Quantize to the 16 levels of FP4 in blocks of 64; see `table_rounding`."""
    return table_rounding(weight, gram, table="fp4")


def table_rounding(
    weight: NDArray[np.floating],
    gram: NDArray[np.floating] | None = None,
    *,
    table: str = "nf4",
    block: int = 64,
    double: bool = False,
) -> BlockCodebook:
    """Take the table's nearest value for each weight.

    Args:
        weight: float [K, N], output channels last.
        gram: X^T X, float [K, K]; used for the loss alone.
        table: "nf4" or "fp4".
        block: Weights that share one absmax, counted along the transposed weight.
        double: Quantize the absmax too, to 8-bit floats (e4m3) in blocks of 256 around their
            mean, as a simulation: MatMulBnb4 takes them in float.

    Raises:
        UsageError: There is no such table, or the block is not positive.
        ValueError: The weight is not finite.

    Source: Dettmers et al. 2023, "QLoRA", arXiv 2305.14314, section 3 and appendix E; layout:
        onnxruntime's ContribOperators.md, com.microsoft.MatMulBnb4.
    """
    if table not in TABLES or block < 1:
        raise UsageError(f"table {table!r}, block {block}", fix="use nf4 or fp4, block 64")
    if not np.isfinite(weight).all():
        raise ValueError("the weight is not finite")
    levels = TABLES[table]
    rows, columns = weight.shape
    flat = weight.T.astype(np.float32).reshape(-1)
    padded = np.zeros(-(-flat.size // block) * block, np.float32)
    padded[: flat.size] = flat
    blocks = padded.reshape(-1, block)
    absmax = np.abs(blocks).max(axis=1, initial=0.0)
    absmax_bits = 32.0
    if double:
        absmax = _quantize_absmax(absmax)
        absmax_bits = 8 + 32 / _SECOND_BLOCK
    shares = np.zeros_like(blocks)
    np.divide(blocks, absmax[:, None], out=shares, where=absmax[:, None] > 0)
    codes = _nearest(shares.reshape(-1)[: flat.size], levels).reshape(columns, rows).T
    result = BlockCodebook(np.ascontiguousarray(codes), absmax, levels, block, absmax_bits)
    return replace(result, loss=relative_loss(weight, result.dequantize(), gram))


def _nearest(values: NDArray[np.float32], levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Codes of the nearest levels."""
    # FP4 has a negative zero: of equal levels the first code is taken.
    distinct, first = np.unique(levels, return_index=True)
    borders = (distinct[1:].astype(np.float64) + distinct[:-1]) / 2
    codes: NDArray[np.uint8] = first.astype(np.uint8)[np.searchsorted(borders, values)]
    return codes


def _quantize_absmax(absmax: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to e4m3 in blocks of 256 around the mean; no result is below 0."""
    mean = np.float32(absmax.mean()) if absmax.size else np.float32(0)
    result = np.empty_like(absmax)
    for start in range(0, absmax.size, _SECOND_BLOCK):
        part = absmax[start : start + _SECOND_BLOCK] - mean
        scale = np.float32(np.abs(part).max() / _LARGEST_E4M3) or np.float32(1)
        back = (part / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
        result[start : start + _SECOND_BLOCK] = np.maximum(back + mean, 0)
    return result
