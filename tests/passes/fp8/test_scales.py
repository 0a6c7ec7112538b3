import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qgraph.passes.fp8.scales import LARGEST, needs_scale, power_of_two, rounding_error


@given(st.floats(2.0**-100, 2.0**100))
@example(448.0)
@example(448.0 * 2**-7)
@example(math.nextafter(448.0, 500.0))
def test_the_least_power_of_two_by_which_a_magnitude_fits(largest):
    scale = power_of_two(largest)
    assert math.frexp(scale)[0] == 0.5
    assert largest / scale <= LARGEST < largest / (scale / 2)


def test_zeros_need_no_scale():
    assert power_of_two(0.0) == 1
    assert rounding_error(np.zeros((3, 4), np.float32), 1.0) == 0


@pytest.mark.parametrize("factor", [1, 2.0**4, 2.0**-4])
def test_powers_of_two_change_no_digit(factor):
    values = np.random.default_rng(0).uniform(1, 4, (50, 50)).astype(np.float32)
    assert rounding_error(values, factor) == rounding_error(values, 1.0) > 0


CHOICE = {"headroom": 2.0, "tolerance": 0.1}


def test_what_fits_is_cast_as_it_is():
    rows = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    assert needs_scale(rows, 5.0, **CHOICE) == 1
    assert needs_scale(rows, 223.9, **CHOICE) == 1


def test_large_values_are_divided_with_room_for_larger_ones():
    rows = np.full((4, 4), 300.0, np.float32)
    assert needs_scale(rows, 300.0, **CHOICE) == 2
    assert needs_scale(rows, 300.0, headroom=1.0, tolerance=0.1) == 1


def test_small_values_are_multiplied():
    """Below 2^-6 steps do not shrink any more."""
    rows = 1e-3 * np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    scale = needs_scale(rows, 5e-3, **CHOICE)
    assert scale == power_of_two(1e-2) < 1
    assert rounding_error(rows, scale) < rounding_error(rows, 1.0) / 10


def test_a_few_small_values_beside_larger_ones_do_not_matter():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 64)).astype(np.float32) * rng.choice([1, 1e-3], (200, 64))
    assert needs_scale(rows, 4.0, **CHOICE) == 1
