"""Which positions of a large tensor calibration looks at."""

import math

# Of one sample's values of one tensor. Neighbours in a feature map are alike: of 1.2 million
# values, 65,536 spread evenly tell percentiles and errors as well (docs/calibration.md).
ENOUGH = 1 << 16


def stride(size: int, limit: int = ENOUGH) -> int:
    """Return the least step that takes at most about `limit` of `size` elements.

    The step has no divisor in common with the size, hence with no dimension: so it wanders
    through rows, columns and channels instead of taking the same column of every row. It depends
    on the size alone.

    Args:
        size: Number of elements, 1 or more.
        limit: How many to take, 1 or more.
    """
    step = -(-size // limit)
    while math.gcd(step, size) > 1:
        step += 1
    return step
