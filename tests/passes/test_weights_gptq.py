import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.encoding import INTEGERS, Spec, dequantize, encode_array, quantize
from qgraph.errors import UsageError
from qgraph.passes.weights import weight_quantizer
from qgraph.passes.weights.gptq import GPTQOptions, SolverWarning, gptq, solve_gptq
from qgraph.passes.weights.grid import CLIPPED, RangeSearch
from qgraph.passes.weights.rtn import round_to_nearest

SPECS = {
    "int4 g8": Spec("int4", axis=0, block=8),
    "uint4 g8": Spec("uint4", False, axis=0, block=8),
    "uint4 g5": Spec("uint4", False, axis=0, block=5),
    "int4 g100": Spec("int4", axis=0, block=100),
    "uint4 column": Spec("uint4", False, axis=1),
    "int4 narrow column": Spec("int4", axis=1, narrow=True),
    "int8 column": Spec("int8", axis=1),
    "uint8 g8": Spec("uint8", False, axis=0, block=8),
    "int2 g8": Spec("int2", axis=0, block=8),
    "uint3 g8": Spec("uint3", False, axis=0, block=8),
    "int3 column": Spec("int3", axis=1),
    "uint2 tensor": Spec("uint2", False),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def layer(rows, columns, seed, spread=0.7, rank=None):
    """A weight, and the Gram matrix of correlated inputs of different sizes, float64."""
    rng = np.random.default_rng(seed)
    rank = rank or max(rows // 2, 1)
    hidden = rng.standard_normal((3 * rows + 5, rank)) @ rng.standard_normal((rank, rows))
    x = hidden + 0.5 * rng.standard_normal(hidden.shape)
    x *= np.exp(spread * rng.standard_normal(rows))
    return rng.standard_normal((rows, columns)), x.T @ x


def output_error(weight, quantized, gram):
    return float(np.trace((weight - quantized).T @ gram @ (weight - quantized)))


def grid(values, spec):
    """Scale and zero point of one column's group, by definition."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    first, last = spec.codes()
    if low == high:
        return np.float32(1), 0
    if not spec.symmetric:
        scale = np.float32((high - low) / (last - first))
        return scale, int(np.clip(np.rint(first - low / float(scale)), first, last))
    return np.float32(max(-low, high) / last), 0


def error_of(values, scale, zero, spec, weights, norm):
    first, last = spec.codes()
    codes = np.clip(np.rint(values / float(scale)) + zero, first, last)
    return float((weights * np.abs((codes - zero) * float(scale) - values) ** norm).sum())


def searched(values, spec, options, weights):
    """The share of the range with the least error, tried one after the other."""
    best = None
    for share in options.search.shares:
        scale, zero = grid(values * share, spec)
        error = error_of(values, scale, zero, spec, weights, options.search.norm)
        if best is None or error < best[0]:
            best = (error, scale, zero)
    return best[1:]


def naive(weight, spec, gram, options):
    """Optimal brain quantization in a fixed order: one weight at a time, float64, no blocks.

    After each weight its row and column are eliminated from the inverse Hessian.
    """
    rows, columns = weight.shape
    hessian = gram + options.damping * np.diag(gram).mean() * np.eye(rows)
    order = np.argsort(-np.diag(gram), kind="stable") if options.order else np.arange(rows)
    length = rows if spec.axis == 1 else spec.block
    first, last = spec.codes()
    # What an error in a row costs once the rows after it have made up for it.
    cost = np.ones(rows)
    if options.conditional:
        for place, k in enumerate(order):
            left = order[place:]
            cost[k] = 1 / np.linalg.inv(hessian[np.ix_(left, left)])[0, 0]
    codes = np.zeros(weight.shape, np.int64)
    for n in range(columns):
        w = weight[:, n].copy()
        inverse = np.linalg.inv(hessian)
        grids = {}
        for k in order:
            group = k // length
            if group not in grids:
                inside = slice(group * length, (group + 1) * length)
                source = weight[inside, n] if options.order else w[inside]
                grids[group] = searched(source, spec, options, cost[inside])
            scale, zero = grids[group]
            codes[k, n] = np.clip(np.rint(w[k] / float(scale)) + zero, first, last)
            error = (w[k] - (codes[k, n] - zero) * float(scale)) / inverse[k, k]
            column = inverse[:, k].copy()
            w -= error * column
            inverse -= np.outer(column, column) / column[k]
            w[k] = 0.0
            inverse[k, :] = inverse[:, k] = 0.0
    return codes


OPTIONS = {
    "plain": GPTQOptions(),
    "order": GPTQOptions(order=True),
    "clip": GPTQOptions(search=CLIPPED),
    "order clip": GPTQOptions(order=True, search=CLIPPED),
    "order clip alike": GPTQOptions(order=True, search=CLIPPED, conditional=False),
    "damped": GPTQOptions(damping=0.3),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    "name", ["int4 g8", "uint4 g8", "uint4 g5", "uint4 column", "uint8 g8", "int2 g8", "uint3 g8"]
)
def test_is_brain_quantization_one_weight_at_a_time(name, options):
    spec = SPECS[name]
    weight, gram = layer(43, 4, 3)
    solved = solve_gptq(weight, spec, gram, options=options)
    assert solved.method == "gptq" and not solved.note
    want = naive(weight, spec, gram, options)
    np.testing.assert_array_equal(solved.codes.astype(np.int64), want)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_float32_loses_nothing_against_float64(options):
    spec = SPECS["int4 g8"]
    weight, gram = layer(200, 12, 5)
    weight = weight.astype(np.float32)
    _, _, loss = gptq(weight, spec, gram.astype(np.float32), options=options)
    _, _, want = gptq(weight.astype(np.float64), spec, gram, options=options)
    assert loss == pytest.approx(want, rel=1e-6)


@each_spec
@pytest.mark.parametrize("order", [False, True])
def test_is_round_to_nearest_where_inputs_are_independent(spec, order):
    weight, gram = layer(50, 7, 1)
    weight = weight.astype(np.float32)
    options = GPTQOptions(order=order)
    codes, encoding, loss = gptq(weight, spec, np.diag(np.diag(gram)), options=options)
    near, plain, want = round_to_nearest(weight, spec, np.diag(np.diag(gram)))
    np.testing.assert_array_equal(codes.astype(int), near.astype(int))
    np.testing.assert_array_equal(encoding.scale, plain.scale)
    np.testing.assert_array_equal(encoding.zero_point, plain.zero_point)
    assert encoding.block == plain.block and loss == want


@each_spec
@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(OPTIONS.values())),
)
def test_never_worse_than_round_to_nearest(spec, rows, columns, seed, options):
    weight, gram = layer(rows, columns, seed)
    weight, gram = weight.astype(np.float32), gram.astype(np.float32)
    codes, encoding, loss = gptq(weight, spec, gram, options=options)
    _, plain, most = round_to_nearest(weight, spec, gram)
    assert loss <= most
    # The loss is that of the codes and the encoding, which have the shapes that others expect.
    size = output_error(weight.astype(np.float64), 0, gram)
    back = dequantize(codes, encoding).astype(np.float64)
    assert loss == pytest.approx(output_error(weight, back, gram) / size, rel=1e-6)
    assert encoding.scale.shape == plain.scale.shape and encoding.block == plain.block
    assert encoding.scale.dtype == np.float32 and encoding.zero_point.dtype == np.int64
    low, high = spec.codes()
    assert codes.dtype == INTEGERS[spec.dtype][2] and codes.shape == weight.shape
    assert low <= codes.astype(int).min() and codes.astype(int).max() <= high


def test_the_last_group_may_be_shorter_and_blocks_lie_on_axis_0():
    weight, gram = layer(72, 3, 2)
    for options in (GPTQOptions(), GPTQOptions(order=True, search=CLIPPED)):
        _, encoding, _ = gptq(weight, Spec("int4", axis=0, block=16), gram, options=options)
        assert encoding.scale.shape == (5, 3) and encoding.block == (16, 1)


def test_a_group_longer_than_the_weight_is_one_per_column():
    weight, gram = layer(30, 3, 4)
    options = GPTQOptions(search=CLIPPED)
    long, _, _ = gptq(weight, Spec("uint4", False, axis=0, block=64), gram, options=options)
    column, _, _ = gptq(weight, Spec("uint4", False, axis=1), gram, options=options)
    np.testing.assert_array_equal(long, column)


def test_greedy_order_is_near_the_best_of_all_codes():
    spec = Spec("int2", axis=1)
    losses, bests = [], []
    for seed in range(20):
        weight, gram = layer(6, 1, seed)
        codes, encoding, _ = gptq(weight, spec, gram, options=GPTQOptions(damping=1e-9))
        scale = float(encoding.scale[0, 0])
        every = np.array(list(itertools.product(range(-2, 2), repeat=6)), np.float64) * scale
        errors = weight[:, 0] - every
        bests.append(np.einsum("ck,kj,cj->c", errors, gram, errors).min())
        losses.append(output_error(weight, dequantize(codes, encoding).astype(np.float64), gram))
    assert all(loss >= best * (1 - 1e-9) for loss, best in zip(losses, bests, strict=True))
    near = sum(
        output_error(w, dequantize(*round_to_nearest(w, spec)[:2]).astype(np.float64), g)
        for w, g in (layer(6, 1, seed) for seed in range(20))
    )
    assert sum(losses) < 0.5 * (near + sum(bests))


def test_dead_inputs_round_to_nearest_and_leave_the_others_alone():
    spec = Spec("int4", axis=1)
    weight, gram = layer(24, 5, 6)
    dead = [3, 10, 23]
    weight[0] = 4.0  # the scale must not hang on the dead rows
    gram[dead] = 0
    gram[:, dead] = 0
    codes, _, _ = gptq(weight, spec, gram)
    alive = np.setdiff1d(np.arange(24), dead)
    alone, _, _ = gptq(weight[alive], spec, gram[np.ix_(alive, alive)])
    np.testing.assert_array_equal(codes[alive].astype(int), alone.astype(int))
    near = quantize(weight[dead].astype(np.float32), encode_array(weight.astype(np.float32), spec))
    np.testing.assert_array_equal(codes[dead].astype(int), near.astype(int))


@pytest.mark.parametrize("order", [False, True])
def test_fewer_samples_than_inputs_need_no_fallback(order):
    weight, _ = layer(40, 5, 7)
    x = np.random.default_rng(0).standard_normal((6, 40))
    solved = solve_gptq(weight, Spec("int4", axis=1), x.T @ x, options=GPTQOptions(order=order))
    assert solved.method == "gptq" and solved.note == ""
    assert solved.loss < 0.3 * round_to_nearest(weight, Spec("int4", axis=1), x.T @ x)[2]


@pytest.mark.parametrize(
    ("change", "method", "words"),
    [
        (lambda g: g * 0, "rtn", "is zero"),
        (lambda g: np.where(np.eye(len(g)) > 0, np.nan, g), "rtn", "not finite"),
        (lambda g: np.full_like(g, np.inf), "rtn", "not finite"),
        # Not a Gram matrix at all: eigenvalues far below zero.
        (lambda g: 50 * (np.diag(np.diag(g)) - g) + g, "rtn", "even with damping"),
    ],
)
def test_a_useless_gram_matrix_is_reported_and_rounded_to_nearest(change, method, words):
    spec = Spec("uint4", False, axis=0, block=8)
    weight, gram = layer(20, 3, 8)
    solved = solve_gptq(weight, spec, change(gram))
    near, _, _ = round_to_nearest(weight, spec)
    assert solved.method == method and words in solved.note
    np.testing.assert_array_equal(solved.codes.astype(int), near.astype(int))
    assert np.isfinite(solved.loss)
    with pytest.warns(SolverWarning, match=words):
        codes, _, _ = gptq(weight, spec, change(gram))
    np.testing.assert_array_equal(codes.astype(int), near.astype(int))


def test_damping_is_raised_where_that_is_enough():
    weight, gram = layer(20, 3, 9)
    values, vectors = np.linalg.eigh(gram)
    values[0] = -0.03 * np.diag(gram).mean()
    bent = (vectors * values) @ vectors.T
    solved = solve_gptq(weight, Spec("int4", axis=1), bent)
    assert "damping 0.01; 0.1 was used" in solved.note and solved.method in ("gptq", "rtn")


def test_a_good_gram_matrix_gives_no_warning():
    weight, gram = layer(20, 3, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gptq(weight, Spec("int4", axis=1), gram)


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e12])
def test_the_gram_matrix_may_have_any_factor(factor):
    weight, gram = layer(40, 3, 10)
    one, _, _ = gptq(weight, SPECS["int4 g8"], gram)
    other, _, _ = gptq(weight, SPECS["int4 g8"], gram * factor)
    np.testing.assert_array_equal(one.astype(int), other.astype(int))


def test_columns_do_not_touch_each_other():
    weight, gram = layer(40, 6, 11)
    options = GPTQOptions(order=True, search=RangeSearch(CLIPPED.shares, 2.4, signed=True))
    codes, _, _ = gptq(weight, SPECS["int4 g8"], gram, options=options)
    alone, _, _ = gptq(weight[:, 2:4], SPECS["int4 g8"], gram, options=options)
    np.testing.assert_array_equal(codes[:, 2:4].astype(int), alone.astype(int))


def test_weighing_by_conditional_variance_lowers_the_loss():
    ratios = []
    for seed in range(6):
        weight, gram = layer(128, 16, seed)
        spec = Spec("int4", axis=0, block=64)
        losses = [
            gptq(weight, spec, gram, options=GPTQOptions(search=CLIPPED, conditional=c))[2]
            for c in (True, False)
        ]
        ratios.append(losses[0] / losses[1])
    assert np.mean(ratios) < 0.97


def test_sweeps_and_refitted_scales_lower_the_loss():
    weight, gram = layer(96, 12, 13)
    spec = Spec("int4", axis=0, block=32)
    losses = [
        gptq(weight, spec, gram, options=GPTQOptions(order=True, sweeps=n, refit=refit))[2]
        for n, refit in ((0, False), (1, False), (3, False), (3, True))
    ]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.95 * losses[0]


def test_refusals():
    weight, gram = layer(8, 3, 0)
    with pytest.raises(UsageError, match="give calibration data"):
        gptq(weight, Spec("int4", axis=1))
    with pytest.raises(ValueError, match="Gram matrix"):
        gptq(weight, Spec("int4", axis=1), gram[:7, :7])
    for spec in (Spec("int4", axis=1, block=2), Spec("int4", axis=0), Spec("int4", axis=2)):
        with pytest.raises(UsageError, match="axis"):
            gptq(weight, spec, gram)
    for options in ({"damping": -0.1}, {"damping": np.nan}, {"sweeps": -1}):
        with pytest.raises(UsageError, match="neither below 0"):
            GPTQOptions(**options)
    weight[2, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        gptq(weight, Spec("int4", axis=1), gram)


def test_is_registered():
    assert weight_quantizer("gptq") is gptq
