import itertools
from functools import cache

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgraph.errors import ModelError
from qgraph.metrics.reading import ctc_greedy, edit_distance, read_alphabet, spell

WORDS = st.text(alphabet="abc ", max_size=7)


def slow_distance(a, b):
    @cache
    def solve(i, j):
        if i == len(a) or j == len(b):
            return len(a) - i + len(b) - j
        if a[i] == b[j]:
            return solve(i + 1, j + 1)
        return 1 + min(solve(i + 1, j), solve(i, j + 1), solve(i + 1, j + 1))

    return solve(0, 0)


@given(WORDS, WORDS)
def test_edit_distance_equals_the_recursive_definition(a, b):
    assert edit_distance(a, b) == slow_distance(a, b)
    assert edit_distance([*map(ord, a)], [*map(ord, b)]) == edit_distance(a, b)


def merged(path):
    return [key for key, _ in itertools.groupby(path) if key]


def test_ctc_reads_every_path_of_four_steps_as_its_definition_says():
    for path in itertools.product(range(3), repeat=4):
        scores = np.full((4, 3), -1.0)
        scores[range(4), path] = 1.0
        assert ctc_greedy(scores).tolist() == merged(path)


@given(st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_ctc_follows_the_path_of_highest_probability(steps, seed):
    scores = np.random.default_rng(seed).random((steps, 3))
    paths = itertools.product(range(3), repeat=steps)
    best = max(paths, key=lambda path: sum(scores[t, c] for t, c in enumerate(path)))
    assert ctc_greedy(scores).tolist() == merged(best)


def test_spelling_counts_the_blank_and_perhaps_a_space():
    classes = np.array([1, 2, 1])
    assert spell(classes, "ab", 3) == "aba"
    assert spell(np.array([1, 3, 2]), "ab", 4) == "a b"
    for count in (2, 5):
        with pytest.raises(ModelError, match=f"{count} classes don't fit an alphabet of 2"):
            spell(classes, "ab", count)


def test_the_alphabet_is_in_the_metadata(tmp_path):
    graph = onnx.helper.make_graph([], "g", [], [])
    model = onnx.helper.make_model(graph)
    onnx.save(model, tmp_path / "bare.onnx")
    assert read_alphabet(tmp_path / "bare.onnx") is None
    # U+2028 and U+0085 are characters here, no line ends; the trailing line end adds nothing.
    onnx.helper.set_model_props(model, {"character": "a\n\u2028\nb\n\x85\n"})
    onnx.save(model, tmp_path / "m.onnx")
    assert read_alphabet(tmp_path / "m.onnx") == ("a", "\u2028", "b", "\x85")
