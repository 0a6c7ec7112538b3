import itertools
from functools import cache

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.zoo.ppocr import alphabet
from models.zoo.reading import cer, ctc_greedy, edit_distance
from qgraph.errors import DataError, ModelError

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


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1).filter(lambda p: any(b for _, b in p)))
def test_cer_is_edits_by_characters(pairs):
    reads, texts = zip(*pairs, strict=True)
    wanted = sum(slow_distance(a, b) for a, b in pairs) / sum(len(b) for b in texts)
    assert cer(reads, texts) == pytest.approx(wanted, abs=1e-12)


def test_cer_weighs_lines_by_length_and_counts_spaces():
    assert cer(["ab", "x"], ["ab", "yyy"]) == 3 / 5
    assert cer(["ab"], ["a b"]) == 1 / 3
    assert cer(["abcd"], ["a"]) == 3


def test_cer_refuses_what_has_no_rate():
    with pytest.raises(DataError, match="don't fit"):
        cer(["a"], ["a", "b"])
    with pytest.raises(DataError, match="no characters"):
        cer(["a"], [""])


def merged(path, characters):
    return "".join(characters[key] for key, _ in itertools.groupby(path) if key)


def test_ctc_reads_every_path_of_four_steps_as_its_definition_says():
    characters = ["", "a", "b"]
    for path in itertools.product(range(3), repeat=4):
        scores = np.full((4, 3), -1.0)
        scores[range(4), path] = 1.0
        assert ctc_greedy(scores, characters) == merged(path, characters)


@given(st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_ctc_follows_the_path_of_highest_probability(steps, seed):
    scores = np.random.default_rng(seed).random((steps, 3))
    paths = itertools.product(range(3), repeat=steps)
    best = max(paths, key=lambda path: sum(scores[t, c] for t, c in enumerate(path)))
    assert ctc_greedy(scores, "\0xy") == merged(best, "\0xy")


@pytest.mark.parametrize("shape", [(4, 2), (4, 4), (1, 4, 3)])
def test_ctc_refuses_scores_that_do_not_fit_the_alphabet(shape):
    with pytest.raises(ModelError, match="don't fit an alphabet of 3"):
        ctc_greedy(np.zeros(shape), ["", "a", "b"])


def test_alphabet_comes_from_the_metadata(tmp_path):
    graph = onnx.helper.make_graph([], "g", [], [])
    model = onnx.helper.make_model(graph)
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(ModelError, match="character"):
        alphabet(tmp_path / "bare.onnx")
    # U+2028 and U+0085 are characters here, no line ends; the trailing line end adds nothing.
    onnx.helper.set_model_props(model, {"character": "a\n\u2028\nb\n\x85\n"})
    onnx.save(model, tmp_path / "m.onnx")
    assert alphabet(tmp_path / "m.onnx") == ["", "a", "\u2028", "b", "\x85", " "]
