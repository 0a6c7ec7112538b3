import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.errors import EngineError, UsageError
from qgraph.sampling import Sampling

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed):
    """1 to 12 logits, rounded so that some are equal, and the generator that drew them."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 10, rng.integers(1, 13)).round().astype(np.float32), rng


@settings(deadline=None)
@given(SEEDS)
def test_temperature_zero_and_top_one_take_the_likeliest(seed):
    logits, rng = drawn(seed)
    assert Sampling().choose(logits, rng) == logits.argmax()
    found = Sampling(temperature=1.0, top_k=1).choose(logits, rng)
    assert logits[found] == logits.max()


@settings(deadline=None)
@given(SEEDS, st.integers(1, 12), st.floats(0.01, 10))
def test_only_the_k_likeliest_are_drawn(seed, k, temperature):
    logits, rng = drawn(seed)
    found = Sampling(temperature, k).choose(logits, rng)
    assert (logits > logits[found]).sum() < k


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampling, rng = Sampling(temperature), np.random.default_rng(0)
    counts = np.bincount([sampling.choose(logits, rng) for _ in range(5_000)], minlength=4)
    weights = np.array([0.5, 0.3, 0.15, 0.05]) ** (1 / temperature)
    expected = weights / weights.sum()
    deviation = np.sqrt(expected * (1 - expected) / 5_000)
    assert (np.abs(counts / 5_000 - expected) < 4 * deviation).all()


def test_large_logits_and_forbidden_tokens():
    logits = np.array([-np.inf, 3e38, -3e38, -np.inf], np.float32)
    rng = np.random.default_rng(0)
    assert {Sampling(2.0).choose(logits, rng) for _ in range(50)} == {1}


@pytest.mark.parametrize("bad", [[0, np.nan], [0, np.inf], [-np.inf, -np.inf]], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_say_nothing_are_refused(bad, temperature):
    with pytest.raises(EngineError, match="logits hold"):
        Sampling(temperature).choose(np.array(bad, np.float32), np.random.default_rng(0))


@pytest.mark.parametrize("options", [(-1.0, 0), (np.nan, 0), (np.inf, 0), (1.0, -1)], ids=str)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError):
        Sampling(*options)
