"""The GPU that an engine would run on, asked of the driver: no CUDA toolkit is needed."""

import ctypes
from dataclasses import dataclass
from functools import cache

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h


@dataclass(frozen=True)
class Device:
    """The first GPU that the process sees.

    Attributes:
        name: As the driver names it.
        capability: Compute capability, such as `8.9`.
    """

    name: str
    capability: str


@cache
def device() -> Device | None:
    """Return the first GPU, None where there is none or no driver."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(library)
        except OSError:
            continue
        handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), 0):
            return None
        if driver.cuDeviceGetName(name, len(name), handle):
            return None
        parts = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle):
                return None
            parts.append(str(value.value))
        return Device(name.value.decode(errors="replace"), ".".join(parts))
    return None
