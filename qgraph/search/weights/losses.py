"""What each layer loses in each way to keep its weight."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Losses:
    """What each layer loses in each way.

    Attributes:
        local: For each layer, the relative error energy of its own result, float64 [kinds].
        data: What its result loses beside that where the kernel rounds its input.
        output: Both at the model's outputs, all else in float.
        measured: For each layer, whether that of its weight was measured, bool [kinds]; else it is estimated.
        samples: Number of samples that layers' inputs were looked at on.
    """

    local: list[NDArray[np.float64]]
    data: list[NDArray[np.float64]]
    output: list[NDArray[np.float64]]
    measured: list[NDArray[np.bool_]]
    samples: int
