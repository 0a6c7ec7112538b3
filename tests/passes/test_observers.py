import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.encoding import Spec, dequantize, encode_range, quantize
from qgraph.passes.observers import build, observer, observers
from qgraph.passes.observers.auto import METHODS, Statistics, choose
from qgraph.passes.observers.entropy import Divergence, evened
from qgraph.passes.observers.histogram import Histogram
from qgraph.passes.observers.search import best_range

ASYMMETRIC, SYMMETRIC = Spec("uint8", symmetric=False), Spec("int8")
SPECS = [ASYMMETRIC, SYMMETRIC, Spec("int8", symmetric=False), Spec("uint8"), Spec("int16")]
COUNTING = ["percentile", "entropy", "mse"]
RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(30_000).astype(np.float32)
RELU = np.maximum(NORMAL, 0)


def range_of(name, *arrays, **options):
    found = build(observer(name), options)
    for array in arrays:
        found.observe(np.asarray(array, np.float32))
    return found.range()


def bins_of(array):
    histogram = Histogram()
    histogram.observe(np.asarray(array, np.float32))
    return histogram.result()


# -- moving average ------------------------------------------------------------------------------


def test_moving_average_by_definition():
    samples = [RNG.standard_normal(5) * k for k in (1, 3, 2, 7)]
    lows = [float(np.float32(sample).min()) for sample in samples]
    highs = [float(np.float32(sample).max()) for sample in samples]
    low, high = lows[0], highs[0]
    for next_low, next_high in zip(lows[1:], highs[1:], strict=True):
        low, high = 0.75 * low + 0.25 * next_low, 0.75 * high + 0.25 * next_high
    assert range_of("moving-average", *samples, rate=0.25) == pytest.approx((low, high), rel=1e-12)


def test_over_all_orders_the_moving_average_is_the_mean():
    samples = [RNG.standard_normal(4) * k for k in (1, 3, 2, 7)]
    found = [range_of("moving-average", *p, rate=0.3) for p in itertools.permutations(samples)]
    assert np.std(found, axis=0).min() > 0.01
    assert np.mean(found, axis=0) == pytest.approx(range_of("mean-minmax", *samples))


def test_moving_averages_do_not_merge():
    one, two, none = (observer("moving-average")() for _ in range(3))
    one.observe(NORMAL)
    two.observe(NORMAL)
    with pytest.raises(ValueError, match="depend on order and can't merge; use mean-minmax"):
        one.merge(two)
    none.merge(one)
    one.merge(observer("moving-average")())
    assert none.range() == one.range() == (NORMAL.min(), NORMAL.max())
    assert [name for name in observers() if observer(name).ordered] == ["moving-average"]


# -- percentile ----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [90, 99, 99.9, 99.99, 100])
@pytest.mark.parametrize("array", [NORMAL, RELU, NORMAL + 3, -RELU, RELU[:300]])
def test_percentile_agrees_with_sorting(share, array):
    low, high = range_of("percentile", array, percentile=share)
    x = np.sort(array.astype(np.float64))
    cut = int(len(x) * (100 - share) / 200 + 1e-9)
    want = x[cut], x[len(x) - 1 - cut]
    # Bins are 1/2048 of an octave wide, and bounds are their outer edges.
    slack = np.abs(want) / 2048 + np.abs(x).max() * 2.0**-23
    assert want[0] - slack[0] <= low <= want[0] and want[1] <= high <= want[1] + slack[1]
    assert x[0] <= low and high <= x[-1]
    low, high = range_of("percentile", array, percentile=share, spec=SYMMETRIC)
    sizes = np.sort(np.abs(x))
    bound = sizes[len(x) - 1 - int(len(x) * (100 - share) / 100 + 1e-9)]
    assert low == -high and bound <= high <= bound * (1 + 1 / 2048) + sizes[-1] * 2.0**-23


# -- mse -----------------------------------------------------------------------------------------


def true_error(array, bounds, spec, norm):
    encoding = encode_range(*bounds, spec)
    back = dequantize(quantize(array, encoding), encoding)
    return float((np.abs(back.astype(np.float64) - array) ** norm).sum())


@pytest.mark.parametrize("spec", SPECS[:4])
@pytest.mark.parametrize("norm", [1.0, 2.0, 2.4, 4.0])
@pytest.mark.parametrize("array", [NORMAL, RELU, NORMAL**3, np.append(NORMAL, 40)])
def test_mse_is_near_the_best_of_a_dense_search(array, spec, norm):
    array = array.astype(np.float32)
    found = true_error(array, range_of("mse", array, norm=norm, spec=spec), spec, norm)
    low, high = float(array.min()), float(array.max())
    shares = np.linspace(0.02, 1, 60)
    if spec.symmetric:
        grid = [(-max(-low, high) * s, max(-low, high) * s) for s in shares]
    else:
        grid = [(min(low, 0) * a, high * b) for a in shares[::3] for b in shares[::3]]
    best = min(true_error(array, bounds, spec, norm) for bounds in grid)
    # The search goes in steps of 1/32 of an octave; at norm 4 the minimum is narrower.
    assert found <= best * (1.01 if norm < 3 else 1.05)


def test_a_higher_norm_clips_less():
    heavy = (NORMAL**3).astype(np.float32)
    highs = [range_of("mse", heavy, norm=norm)[1] for norm in (1, 2, 2.4, 4, 8)]
    assert highs == sorted(highs) and highs[0] < 0.8 * highs[-1]


# -- entropy -------------------------------------------------------------------------------------


def naive_divergence(bins, codes, low, high):
    """P and Q written out bin by bin, as the source describes them."""
    width, middles = np.diff(bins.edges), bins.middles
    counts = bins.counts.astype(float)
    beside = [i for i in (bins.zero - 1, bins.zero + 1) if 0 <= i < len(counts)]
    counts[bins.zero] = np.mean([counts[i] / width[i] for i in beside]) * width[bins.zero]
    inside = [i for i in range(len(counts)) if low <= middles[i] <= high and counts[i]]
    first, last = inside[0], inside[-1]
    p = counts[first : last + 1].copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last + 1 :].sum()
    step = (high - low) / (codes - 1)
    q = np.zeros_like(p)
    code = [math.floor((middles[i] - low) / step + 0.5) for i in range(first, last + 1)]
    for each in set(code):
        members = [i for i, c in enumerate(code) if c == each and counts[first + i]]
        total = sum(counts[first + i] for i in members)
        span = sum(width[first + i] for i in members)
        for i in members:
            q[i] = total * width[first + i] / span
    p, q = p / p.sum(), q / q.sum()
    assert np.all(q[p > 0] > 0)
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


@pytest.mark.parametrize(
    ("array", "share"),
    [
        *itertools.product([NORMAL, RELU, -RELU, NORMAL[:900] ** 3], [1, 0.83, 0.6, 0.2]),
        # No smaller range holds 256 bins of values above 1.
        *itertools.product([np.abs(NORMAL) + 1], [1, 0.83]),
    ],
)
def test_divergence_is_that_of_the_source(array, share):
    bins = evened(bins_of(array))
    low, high = min(bins.low, 0) * share, max(bins.high, 0) * share
    found = Divergence(bins, 256)(np.array([low]), np.array([high]))[0]
    want = naive_divergence(bins, 256, low, high)
    if np.mean((array < low) | (array > high)) > 0.12:
        want = np.inf
    assert found == pytest.approx(want, rel=1e-8, abs=1e-12)


def test_entropy_finds_the_least_divergence_of_a_dense_search():
    bins = bins_of(np.append(RELU, [30.0, 31.0]))
    divergence = Divergence(evened(bins), 256)
    highs = np.linspace(0.5, bins.high, 500)
    dense = divergence(np.zeros(500), highs)
    _, high = range_of("entropy", RELU, [30.0, 31.0])
    found = divergence(np.zeros(1), np.array([high]))[0]
    assert found <= dense.min() * 1.05 and high < 8


def test_a_range_that_clips_a_lot_is_no_candidate():
    divergence = Divergence(evened(bins_of(NORMAL)), 256)
    bounds = np.array([1.0, 1.6, 1.7, 4.0])
    assert np.isfinite(divergence(-bounds, bounds)).tolist() == [False, False, True, True]


def test_bins_have_one_width_but_for_outliers():
    bins = evened(bins_of(np.append(NORMAL, 1e6)))
    widths = np.delete(np.diff(bins.edges), bins.zero)
    inside = np.delete(np.abs(bins.middles) < 3.5, bins.zero)
    assert len(set(widths[inside])) == 1 and inside.sum() > 3500
    assert widths.max() > 100 * widths.min()


def test_small_values_have_no_say_beyond_the_density_of_the_lowest_codes():
    # Dense in the logarithm: bins as fine as float32's would show a peak inside the lowest code.
    small = np.exp(RNG.uniform(-14, 0, 100_000)).astype(np.float32)
    assert range_of("entropy", small, NORMAL)[1] > 2


def test_zeros_do_not_pull_the_range_together():
    dense = RELU[RELU > 0]
    assert range_of("entropy", dense, np.zeros(10**6)) == range_of("entropy", dense, [0.0])


def test_few_values_keep_the_full_range():
    assert range_of("entropy", np.linspace(-3, 5, 17)) == (-3, 5)
    assert range_of("entropy", NORMAL, spec=Spec("int16")) == (NORMAL.min(), NORMAL.max())


# -- search --------------------------------------------------------------------------------------


def test_search_finds_both_bounds_and_prefers_the_widest():
    def cost(lows, highs):
        return (lows + 0.37) ** 2 + (highs - 1.9) ** 2

    low, high = best_range(-4.0, 5.0, cost)
    assert low == pytest.approx(-0.37, rel=0.03) and high == pytest.approx(1.9, rel=0.03)
    assert best_range(-4.0, 5.0, lambda lows, highs: 0 * lows) == (-4, 5)
    assert best_range(1.0, 5.0, lambda lows, highs: 0 * lows) == (0, 5)
    low, high = best_range(-4.0, 5.0, cost, symmetric=True)
    assert low == -high


# -- all: hostile values -------------------------------------------------------------------------

HOSTILE = {
    "one value": [3.7],
    "constant": np.full(1000, -2.5),
    "zeros": np.zeros(1000),
    "one denormal": [1e-42],
    "denormals": RNG.uniform(-1e-39, 1e-39, 1000),
    "tiny": NORMAL * np.float32(1e-37),
    "huge": RNG.uniform(-3e38, 3e38, 1000),
    "two values": [-1.0] * 999 + [1000.0],
    "one outlier": np.append(NORMAL, 1e6),
    "two scales": np.append(NORMAL, NORMAL * np.float32(1e-20)),
    "integers": np.arange(256).repeat(10),
}


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.dtype}-{s.symmetric}")
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", observers())
@pytest.mark.filterwarnings("error")
def test_hostile_values_get_a_usable_encoding(name, kind, spec):
    array = np.asarray(HOSTILE[kind], np.float32)
    low, high = range_of(name, array, spec=spec)
    # Symmetric searches may return the mirror image of the one bound.
    size = max(abs(float(array.min())), abs(float(array.max())))
    assert -size <= low <= high <= size
    encoding = encode_range(low, high, spec)
    assert np.isfinite(encoding.scale) and encoding.scale > 0
    back = dequantize(quantize(array, encoding), encoding)
    assert np.isfinite(back).all()
    if kind in ("constant", "one value") and name != "percentile":
        assert np.abs(back - array).max() <= float(encoding.scale)
    if kind == "zeros":
        assert not back.any()


@pytest.mark.parametrize("name", ["percentile", "entropy"])
def test_one_huge_outlier_does_not_take_the_range(name):
    low, high = range_of(name, NORMAL, [1e6])
    assert -6 < low < -3 and 3 < high < 6


@pytest.mark.parametrize("name", COUNTING)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_are_refused(name, bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        range_of(name, [0.0, bad])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("percentile", {"percentile": 100.5}, "percentile is 100.5; give 50 to 100"),
        ("percentile", {"percentile": math.nan}, "percentile is nan"),
        ("mse", {"norm": 0.5}, "norm is 0.5; give 1 to 8"),
        ("moving-average", {"rate": 0.0}, "rate is 0.0; give more than 0"),
        ("entropy", {"bins": 2000}, "power of two"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(observer(name), options)


# -- auto ----------------------------------------------------------------------------------------

ARRAYS = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5), min_size=1, max_size=8
)


@settings(max_examples=30, deadline=None)
@given(arrays=ARRAYS, shards=st.integers(1, 3))
def test_statistics_merge_exactly(arrays, shards):
    parts = [Statistics(ASYMMETRIC) for _ in range(shards)]
    whole = Statistics(ASYMMETRIC)
    for index, array in enumerate(arrays):
        whole.observe(np.array(array, np.float32))
        parts[-1 - index % shards].observe(np.array(array, np.float32))
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].candidates() == whole.candidates()


def test_candidates_are_what_the_observers_say():
    found = Statistics(ASYMMETRIC, bins=2048)
    found.observe(NORMAL)
    found.observe(RELU)
    assert tuple(found.candidates()) == METHODS
    for method, want in found.candidates().items():
        name, _, option = method.partition(" ")
        options = (
            {{"percentile": "percentile", "mse": "norm"}[name]: float(option)} if option else {}
        )
        assert range_of(name, NORMAL, RELU, **options) == want == found.range(method)


def test_each_sample_counts_alike():
    # One sample a thousand times as large rules the sum of errors, but not the choice.
    errors = {"wide": [4.0] * 9 + [1000.0], "narrow": [1.0] * 9 + [9000.0]}
    assert min(errors, key=lambda name: sum(errors[name])) == "wide"
    assert choose(errors) == "narrow"
    assert choose({"first": [2.0, 8.0], "second": [8.0, 2.0]}) == "first"
