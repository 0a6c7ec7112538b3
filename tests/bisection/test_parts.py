"""The smallest set, scores and causes, on what fits in a line."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgraph.bisection import causes
from qgraph.bisection.minimal import smallest_set
from qgraph.bisection.scores import Score, _decibel, _energies
from qgraph.encoding import Encoding, Spec, dequantize, encode_array, quantize


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.permutations(range(n)), st.sets(st.integers(0, n - 1)))
    )
)
def test_the_set_restores_and_no_member_can_go(case):
    order, needed = case
    asked = []

    def restores(chosen):
        asked.append(1)
        return needed <= set(chosen)

    found = smallest_set(order, restores)
    assert set(found) == needed and found == [each for each in order if each in needed]
    assert len(asked) <= 2 + math.log2(len(order)) + 1 + len(order)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 40))
def test_where_several_sets_restore_one_is_found_that_has_no_spare_member(weights, need):
    items = sorted(range(len(weights)), key=lambda i: -weights[i])

    def restores(chosen):
        return sum(weights[i] for i in chosen) >= need

    found = smallest_set(items, restores)
    if sum(weights) < need:
        assert found is None
        return
    assert restores(found)
    assert not any(restores([each for each in found if each != gone]) for gone in found)


def test_nothing_lost_and_nothing_that_helps():
    assert smallest_set([1, 2], lambda chosen: True) == []
    assert smallest_set([1, 2], lambda chosen: False) is None


def codes_of(low, high):
    scale = np.float32((high - low) / 255)
    return Encoding("uint8", scale, np.asarray(round(-low / float(scale)), np.int64))


def test_an_outlier_channel():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 16, 8, 8)).astype(np.float32)
    assert causes.outlier_channel("x", x, 1, codes_of(-4, 4)) is None
    x[:, 5] *= 40
    found = causes.outlier_channel("x", x, 1, codes_of(-130, 130))
    assert found.kind == "outlier channel" and "channel 5 of x" in found.what


def test_a_saturated_range():
    x = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    assert causes.saturated_range("x", x, codes_of(-5, 5)) is None
    found = causes.saturated_range("x", x, codes_of(-1, 1))
    share = (np.abs(x) > 1).mean()
    assert found.kind == "saturated range" and f"{share:.0%}"[:2] in found.what
    rounding, clipping, outside = causes.errors(x, codes_of(-1, 1))
    naive = (dequantize(quantize(x, codes_of(-1, 1)), codes_of(-1, 1)).astype(float) - x) ** 2
    assert rounding + clipping == pytest.approx(float(naive.sum()), rel=1e-6)
    assert outside == pytest.approx(share, abs=5e-3)


def test_the_tail_of_a_softmax():
    logits = np.random.default_rng(0).standard_normal((64, 512)) * 3
    x = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = causes.tail("p", "Softmax", x.astype(np.float32), codes_of(0, 1))
    assert found.kind == "tail" and "two lowest codes" in found.what
    assert causes.tail("p", "Relu", x.astype(np.float32), codes_of(0, 1)) is None
    flat = np.linspace(0, 1, 1000, dtype=np.float32)
    assert causes.tail("p", "Sigmoid", flat, codes_of(0, 1)) is None


def test_depthwise_weights():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 1, 3, 3)).astype(np.float32)
    weight[0] *= 1000
    spec = Spec("int4", True, axis=None)
    encoding = encode_array(weight[1:], spec)
    codes = dequantize(quantize(weight, encoding), encoding)
    found = causes.depthwise("dw", weight, codes, 8)
    assert found.kind == "depthwise weights" and "differ by" in found.what
    assert causes.depthwise("dw", weight, codes, 1) is None
    assert causes.depthwise("dw", weight, weight, 8) is None


def test_otherwise_the_operand_that_loses_more():
    assert causes.dominant(0.02, 0.01).kind == "weights"
    assert causes.dominant(0.01, 0.02).kind == "activations"


def test_decibels_of_what_is_not_finite():
    want = np.array([1.0, np.inf, np.nan])
    assert _energies(want, want) == (1.0, 0.0) and _decibel(1.0, 0.0) == math.inf
    assert _energies(want, np.array([1.0, 2.0, np.nan]))[1] == math.inf
    assert _decibel(1.0, math.inf) == -math.inf
    assert str(Score(math.nan, True, "not run: x")) == "not run: x"
