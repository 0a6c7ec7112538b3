"""The roofline: a kernel can't be faster than its arithmetic, nor than its bytes.

    ms = max(operations / peak, bytes / bandwidth) / efficiency + start

What was measured goes before what is estimated.
"""

import math
from collections.abc import Iterable

import numpy as np

from qgraph.costs import load_costs
from qgraph.costs.table import CostTable
from qgraph.search.devices import Device, Rates
from qgraph.search.work import Work

# What the tables of measured products call the kernels.
_KERNELS = {"fp16": "fp16", "fp8": "fp8", "int4-weights": "int4", "int8-weights": "int8"}


def roofline_ms(
    operations: float,
    moved: float,
    *,
    tflops: float,
    gb_s: float,
    efficiency: float = 1.0,
    launch_us: float = 0.0,
) -> float:
    """Return milliseconds of one kernel.

    Args:
        operations: Multiplications and additions.
        moved: Bytes read and written.
        tflops: Peak, 10^12 operations a second.
        gb_s: Bandwidth, 10^9 bytes a second.
        efficiency: Share of the bound that is reached.
        launch_us: Microseconds beside it.
    """
    bound = max(operations / (tflops * 1e9), moved / (gb_s * 1e6))
    return bound / efficiency + launch_us * 1e-3


def total_ms(device: Device, backend: str, works: Iterable[Work]) -> float:
    """Return milliseconds of kernels, one after the other.

    Raises:
        LookupError: The backend does not run one of them; the message says which.
    """
    return math.fsum(work_ms(device, backend, work) for work in works)


def work_ms(device: Device, backend: str, work: Work) -> float:
    """Return milliseconds of one kernel: measured where it was, else estimated.

    Raises:
        LookupError: The backend does not run it.
    """
    rates = device.backends[backend]
    key = (backend, work.op, work.precision, work.inputs, work.output)
    for row in device.measured:
        if (row.backend, row.op, row.precision, row.inputs, row.output) == key:
            return row.ms
    estimate = _estimated(device, rates, work, work.precision)
    return _by_tables(device, rates, work) or estimate


def _estimated(device: Device, rates: Rates, work: Work, precision: str) -> float:
    # Weights in few bits are multiplied in the type of the data.
    number = work.computes if precision.endswith("-weights") else precision
    peak = rates.runs.get(number)  # type: ignore[call-overload]
    if peak is None:
        raise LookupError(f"{number} is not run, which {work.op} computes in")
    return roofline_ms(
        work.operations,
        work.moved,
        tflops=device.tflops[peak],
        gb_s=device.bandwidth_gb_s,
        efficiency=rates.efficiency,
        launch_us=rates.launch_us,
    )


def _by_tables(device: Device, rates: Rates, work: Work) -> float | None:
    """Measured milliseconds of a product by constants, or fp16's estimate times the measured ratio."""
    kernel = _KERNELS.get(work.precision)
    if work.product is None or kernel is None:
        return None
    for table in map(load_costs, rates.products):
        exact = _exact(table, kernel, work)
        if exact is not None:
            return exact
        ratio = None
        if kernel != "fp16":
            rows, depth, width, block = work.product
            ratio = table.ratio(kernel, "fp16", depth, width, rows, block)
        if ratio is not None:
            return ratio.ratio * _estimated(device, rates, work.in_halves(), "fp16")
    return None


def _exact(table: CostTable, kernel: str, work: Work) -> float | None:
    """The table's time of just this shape, between the measured numbers of rows."""
    assert work.product is not None
    rows, depth, width, block = work.product
    for row in table.products:
        same = (row.kernel, row.depth, row.width) == (kernel, depth, width)
        if same and row.block in (0, block) and row.rows[0] <= rows <= row.rows[-1]:
            log = np.interp(math.log2(rows), np.log2(row.rows), np.log2(row.us))
            return float(np.exp2(log)) * 1e-3
    return None
