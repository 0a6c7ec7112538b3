import numpy as np
import pytest

from qgraph.encoding import Spec, dequantize
from qgraph.passes.weight_only.solve import METHODS, MIXED, Settings, solve_experts, solve_group
from qgraph.passes.weight_only.statistics import InputStatistics
from qgraph.passes.weights.gptq import GPTQOptions
from qgraph.passes.weights.grid import SQUARED

SPEC = Spec("uint4", False, axis=0, block=16)
UNIFORM = ("rtn", "clipped", "hqq", "gptq")


def inputs(rows=400, size=40, seed=0):
    """Correlated, with channels of very different size."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, size)) @ (np.eye(size) + 0.3 * rng.standard_normal((size, size)))
    return (x * np.exp(rng.standard_normal(size))).astype(np.float32)


def weights(size=40, widths=(24, 8)):
    rng = np.random.default_rng(1)
    return [rng.standard_t(5, (size, n)).astype(np.float32) for n in widths]


def statistics(x):
    found = InputStatistics(x.shape[1], peaks=True)
    found.add(x)
    return found


def error(x, weight, solution):
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    exact = x @ weight
    return np.square(exact - x @ solution.effective()).sum() / np.square(exact).sum()


@pytest.mark.parametrize("scaling", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_the_error_of_the_layers_result(method, scaling):
    x, matrices = inputs(), weights()
    settings = Settings(method, SPEC, scaling=scaling and method in UNIFORM)
    found = solve_group(matrices, statistics(x), settings)
    for weight, solution in zip(matrices, found, strict=True):
        assert solution.loss == pytest.approx(error(x, weight, solution), rel=2e-3)
        assert 0 < solution.loss < 0.05


@pytest.mark.parametrize("method", UNIFORM)
def test_layers_solved_together_are_solved_as_alone(method):
    x, matrices = inputs(), weights()
    settings = Settings(method, SPEC)
    together = solve_group(matrices, statistics(x), settings)
    for weight, solution in zip(matrices, together, strict=True):
        (alone,) = solve_group([weight], statistics(x), settings)
        np.testing.assert_array_equal(solution.weight.codes, alone.weight.codes)
        # Some CPUs' BLAS adds up differently for other widths.
        scales = [each.weight.encoding.scale for each in (solution, alone)]
        np.testing.assert_allclose(*scales, rtol=1e-6)
        assert solution.before == pytest.approx(alone.before, rel=1e-6)


def test_better_methods_err_less():
    x, matrices = inputs(), weights(widths=(64,))
    search = GPTQOptions(order=True, search=SQUARED)
    losses = {}
    for name, method, scaling, options in (
        ("rtn", "rtn", False, GPTQOptions()),
        ("clipped", "clipped", False, search),
        ("awq", "clipped", True, search),
        ("gptq", "gptq", False, search),
        ("awq+gptq", "gptq", True, search),
    ):
        settings = Settings(method, SPEC, scaling=scaling, gptq=options)
        (found,) = solve_group(matrices, statistics(x), settings)
        losses[name] = found.loss
        assert found.before == pytest.approx(losses["rtn"], rel=1e-5)
    assert losses["gptq"] < 0.5 * losses["rtn"] and losses["clipped"] < losses["rtn"]
    assert losses["awq"] < losses["clipped"] and losses["awq+gptq"] < losses["awq"]


def test_a_group_shares_one_scale_and_tied_channels_share_one_factor():
    x = inputs()
    tied = np.arange(40) % 20
    found = solve_group(weights(), statistics(x), Settings("rtn", SPEC, scaling=True), tied)
    scale = found[0].scale
    assert scale is not None and scale.std() > 0.1
    np.testing.assert_array_equal(scale, found[1].scale)
    np.testing.assert_array_equal(scale[:20], scale[20:])


@pytest.mark.parametrize("method", ["rtn", "clipped", "hqq", "nf4", "fp4", "squeeze", MIXED])
def test_without_data_the_weight_alone_decides(method):
    (weight,) = weights(widths=(24,))
    (found,) = solve_group([weight], None, Settings(method, SPEC, scaling=True))
    assert found.scale is None
    relative = np.square(weight - found.effective()).sum() / np.square(weight).sum()
    assert found.loss == pytest.approx(relative, rel=1e-4)


def test_outlier_channels_stay_in_float():
    x = inputs()
    x[:, 3] *= 100
    (weight,) = weights(widths=(24,))
    (found,) = solve_group([weight], statistics(x), Settings(MIXED, SPEC, threshold=50.0))
    assert 3 in found.weight.outliers and len(found.weight.outliers) < 20
    np.testing.assert_array_equal(found.effective()[3], weight[3])


def test_experts_are_solved_from_their_own_inputs():
    x = np.stack([inputs(seed=n) for n in range(3)])
    stack = np.stack([weights(widths=(24,))[0] * (n + 1) for n in range(3)])
    seen = InputStatistics(40, 3)
    seen.add(x)
    settings = Settings("gptq", SPEC)
    found = solve_experts(stack, seen, settings)
    assert found.weight.encoding.block == (1, 16, 1)
    for n in range(3):
        (alone,) = solve_group([stack[n]], statistics(x[n]), settings)
        np.testing.assert_array_equal(found.weight.codes[n], alone.weight.codes)
        np.testing.assert_array_equal(
            dequantize(found.weight.codes, found.weight.encoding)[n], alone.effective()
        )
