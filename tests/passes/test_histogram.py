import math
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qgraph.passes.observers.histogram import OCTAVES, Histogram
from qgraph.passes.observers.sampling import ENOUGH, stride

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Magnitudes of one kind, or from denormals to the greatest float32.
ARRAYS = st.lists(
    st.lists(FLOATS | st.floats(-8, 8, width=32), min_size=0, max_size=6), min_size=1, max_size=10
)


def counted(arrays, bins=256):
    found = Histogram(bins)
    for array in arrays:
        found.observe(np.array(array, np.float32))
    return found


def same(a, b):
    if a.low > a.high or b.low > b.high:
        return (a.low, a.high) == (b.low, b.high)
    x, y = a.result(), b.result()
    return (
        (x.low, x.high, x.zero) == (y.low, y.high, y.zero)
        and np.array_equal(x.counts, y.counts)
        and np.array_equal(x.edges, y.edges)
    )


def naive(values, bins):
    """Edges and counts by definition, in Python's own arithmetic."""
    top = max(abs(float(v)) for v in values)
    exponent = max(np.frexp(np.float64(top))[1] - 1, -126) if top else -126
    lowest = max(exponent - OCTAVES + 1, -126)
    least = 2.0**lowest * (1 + 1 / bins)
    if exponent - OCTAVES + 1 < -126:
        least = 2.0**-126 / bins  # denormals are spaced like the octave above them
    counts = {}
    for value in map(float, values):
        size = abs(value)
        if size < least:
            edge = 0.0
        else:
            width = 2.0 ** max(np.frexp(size)[1] - 1, -126) / bins
            edge = np.floor(size / width) * width * np.sign(value)
        counts[edge] = counts.get(edge, 0) + 1
    return counts


@settings(max_examples=300, deadline=None)
@given(arrays=ARRAYS, seed=st.integers(0, 1000), shards=st.integers(1, 4))
def test_order_batches_and_shards_change_nothing_to_the_bit(arrays, seed, shards):
    want = counted(arrays)
    values = [value for array in arrays for value in array]
    assert same(counted([values]), want), "one batch"
    assert same(counted([[v] for v in values]), want), "one value at a time"
    shuffled = values[:]
    random.Random(seed).shuffle(shuffled)
    parts = [counted([[v] for v in shuffled[i::shards]]) for i in range(shards)]
    for part in parts[1:]:
        parts[0].merge(part)
    assert same(parts[0], want), "shards in another order"


@settings(max_examples=300, deadline=None)
@given(arrays=ARRAYS.filter(lambda a: any(a)), bins=st.sampled_from([256, 1024, 2048]))
@example(arrays=[[-(2.0**-126)]], bins=256)
def test_every_value_is_counted_where_it_belongs(arrays, bins):
    values = np.array([v for a in arrays for v in a], np.float32)
    found = counted(arrays, bins).result()
    want = naive(values, bins)
    occupied = np.flatnonzero(found.counts)
    got = {}
    for i in occupied:
        inner = found.edges[i] if i > found.zero else found.edges[i + 1]
        got[0.0 if i == found.zero else float(inner)] = int(found.counts[i])
    assert got == {float(k): v for k, v in want.items()}
    assert found.low == values.min() and found.high == values.max()
    # The range holds at least `bins` bins from zero to the greatest magnitude.
    top = np.abs(values).max()
    last = 0 if values.min() == -top else len(found.counts) - 1
    if top >= np.finfo(np.float32).tiny and last != found.zero:
        assert found.edges[last + 1] - found.edges[last] <= top / bins


@settings(max_examples=200, deadline=None)
@given(arrays=ARRAYS.filter(lambda a: any(a)))
def test_thinning_keeps_every_count_and_moves_values_little(arrays):
    found = counted(arrays, 2048).result()
    middles, counts = found.thinned(256)
    assert counts.sum() == found.counts.sum() and np.all(np.diff(middles) > 0)
    # A value may move by half a bin of 1/256 of its octave.
    full = np.repeat(found.middles, found.counts)
    thin = np.repeat(middles, counts)
    assert np.all(np.abs(full - thin) <= np.abs(full) / 256 + abs(found.edges[found.zero + 1]))


@settings(max_examples=150, deadline=None)
@given(
    arrays=ARRAYS.filter(lambda a: any(abs(v) > 1e-30 for each in a for v in each)),
    share=st.floats(0.01, 1),
)
def test_coarsened_bins_count_where_values_are(arrays, share):
    values = np.array([v for a in arrays for v in a], np.float32).astype(np.float64)
    found = counted(arrays, 256).result()
    bound = float(share * np.abs(values).max())
    coarse = found.coarsened(bound)
    width = 2.0 ** np.floor(np.log2(bound)) / 256
    spans = np.diff(coarse.edges) / width
    assert np.all(spans >= 1) and np.all(coarse.edges / width % 1 == 0)
    if found.edges[0] < 0:
        assert coarse.edges[coarse.zero] == -width * max(-found.edges[found.zero] // width, 1)
    inside = np.minimum(np.abs(coarse.edges[:-1]), np.abs(coarse.edges[1:])) < bound
    assert np.all(spans[: coarse.zero][inside[: coarse.zero]] == 1)
    assert np.all(spans[coarse.zero + 1 :][inside[coarse.zero + 1 :]] == 1)
    least = found.edges[found.zero + 1]  # below it, values are zeros
    values[np.abs(values) < least] = 0
    want = np.zeros(len(coarse.counts), int)
    for value in values:  # towards zero, the edge belongs to the bin
        side = "right" if value > -width else "left"
        want[np.searchsorted(coarse.edges, value, side=side) - 1] += 1
    assert np.array_equal(want, coarse.counts)


def test_coarsened_bins_cover_a_range_by_at_least_as_many_as_an_octave_has():
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    found = counted([x], 2048).result()
    for bound in (0.1, 0.5, 1.0, 3.0):
        edges = found.coarsened(bound).edges
        assert 2048 <= np.sum((edges > 0) & (edges <= bound)) < 4096


@pytest.mark.parametrize("size", [ENOUGH - 1, ENOUGH])
def test_arrays_of_moderate_size_are_counted_whole(size):
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    whole = counted([x], 2048)
    assert same(counted(np.array_split(x, 7), 2048), whole)
    assert whole.result().counts.sum() == size


def test_of_a_large_array_each_value_seen_stands_for_those_left_out():
    x = np.random.default_rng(0).standard_normal((96, 50, 70)).astype(np.float32)
    step = stride(x.size)
    assert step > 1
    found = counted([x], 2048).result()
    seen = counted([x.reshape(-1)[::step]] * step + [[x.min(), x.max()]], 2048).result()
    assert np.array_equal(found.counts, seen.counts) and np.array_equal(found.edges, seen.edges)
    assert (found.low, found.high) == (x.min(), x.max())
    # So samples of other sizes count in proportion.
    assert abs(found.counts.sum() - x.size) <= step + 2


@pytest.mark.parametrize("value", [1000.0, -1000.0])
def test_the_extremes_of_a_large_array_are_counted_wherever_they_stand(value):
    x = np.zeros(10 * ENOUGH, np.float32)
    x[1] = value
    found = counted([x]).result()
    assert found.counts[-1 if value > 0 else 0] == 1


@given(size=st.integers(1, 1 << 24), limit=st.integers(1, 1 << 16))
def test_a_stride_has_no_divisor_in_common_with_the_size(size, limit):
    step = stride(size, limit)
    assert math.gcd(step, size) == 1 and -(-size // step) <= limit
    # Not much larger than needed: among so many numbers in a row one is coprime.
    assert step < size / limit + 40


def test_negative_zero_is_zero():
    found = counted([[-0.0, 0.0, 1.0]]).result()
    assert found.zero == 0 and found.counts[0] == 2 and found.low == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_values_are_refused_and_leave_no_trace(bad):
    found = counted([[1.0]])
    with pytest.raises(ValueError, match="NaN or infinite"):
        found.observe(np.array([1.0, bad], np.float32))
    assert same(found, counted([[1.0]]))


@pytest.mark.parametrize("bins", [0, 100, 128, 300, 16384, -256])
def test_bins_must_be_a_power_of_two_in_range(bins):
    with pytest.raises(ValueError, match="give a power of two between 256 and 8192"):
        Histogram(bins)


def test_other_bins_do_not_merge():
    with pytest.raises(ValueError, match="256 and 512 bins"):
        counted([[1.0]]).merge(counted([[1.0]], 512))
    with pytest.raises(ValueError, match="nothing was observed"):
        Histogram().result()
