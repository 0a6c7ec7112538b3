"""Arrays on a GPU: CuPy's answer numpy's functions, so algorithms are written once.

numpy hands calls with CuPy arrays on to CuPy (NEP 13 and 18). What remains is to bring arrays over,
which neither package does by itself.
"""

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray


@cache
def gpu() -> ModuleType | None:
    """Return CuPy where it is installed and finds a GPU, else None."""
    try:
        import cupy
    except ImportError:
        return None
    try:
        return cupy if cupy.cuda.runtime.getDeviceCount() else None
    except cupy.cuda.runtime.CUDARuntimeError:
        return None


def host(array: Any) -> NDArray[Any]:
    """Return an array in the computer's own memory; a copy only where it was on a GPU."""
    found: NDArray[Any] = array.get() if hasattr(array, "get") else np.asarray(array)
    return found


def beside(reference: Any, array: Any) -> Any:
    """Return `array` where `reference` is: on the GPU, or in the computer's own memory."""
    cupy = gpu()
    if cupy is not None and isinstance(reference, cupy.ndarray):
        return cupy.asarray(array)
    return host(array)
