"""Every metric against a computation of its own, and what it refuses."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qgraph.errors import DataError, UsageError
from qgraph.metrics import METRICS, metric, metrics
from qgraph.metrics.spearman import average_ranks

SEEDS = st.integers(0, 2**32 - 1)


def score(name, outputs, labels, **options):
    chosen = metric(name, **options)
    return chosen.score(chosen.contributions(outputs, labels))


def test_every_metric_is_documented_and_has_a_direction():
    assert len(metrics()) == len(METRICS)
    for name, kind in metrics().items():
        assert kind().name == name and kind().better in ("higher", "lower")
        summary = kind.__doc__.splitlines()[0]
        assert summary.endswith(".") and not summary.startswith(kind.__name__)


def test_unknown_names():
    with pytest.raises(UsageError, match="did you mean 'perplexity'"):
        metric("perplexty")
    with pytest.raises(UsageError, match="module:function"):
        metric("bleu")


# -- classifiers -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(5, 9)),
                  elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])), SEEDS)  # fmt: skip
def test_topk_counts_classes_in_sorted_order(scores, seed):
    labels = np.random.default_rng(seed).integers(0, scores.shape[1], len(scores))
    order = [sorted(range(len(row)), key=lambda c: (-row[c], c)) for row in scores]
    for name, k in (("top1", 1), ("top5", 5)):
        hits = [label in each[:k] for each, label in zip(order, labels, strict=True)]
        assert score(name, {"z": scores}, {"label": labels}) == pytest.approx(np.mean(hits))
    assert score("top1", {"z": scores}, {"y": labels}) == (scores.argmax(1) == labels).mean()


def test_agreement_reads_the_original_s_outputs():
    ours = np.array([[1, 2, 0], [3, 1, 0], [0, 0, 1]], np.float16)
    theirs = np.array([[0, 9, 1], [0, 1, 0], [0, 0, 5]], np.float32)
    assert score("agreement", {"z": ours}, {"z": theirs}) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="don't fit the original's"):
        score("agreement", {"z": ours}, {"z": theirs[:, :2]})


def test_scores_with_axes_of_one_at_the_end_are_scores():
    scores = np.eye(4, dtype=np.float32)[:, :, None, None]
    assert score("top1", {"z": scores}, {"label": np.arange(4)}) == 1


@pytest.mark.parametrize(
    ("label", "what"),
    [
        (np.array([0, 3]), "class 3 is not among the output's 3"),
        (np.array([0, -1]), "class -1"),
        (np.array([0, 1, 2]), "3 labels don't fit 2 rows"),
        (np.array([0.0, 1.0]), "float64 are no classes"),
        (np.array(["a", "b"]), "are no classes"),
    ],
)
def test_labels_that_are_no_classes(label, what):
    with pytest.raises(DataError, match=what):
        score("top1", {"z": np.zeros((2, 3))}, {"label": label})


def test_which_output_and_which_label():
    outputs = {"z": np.eye(3), "p": np.eye(3)[::-1], "features": np.zeros((3, 7, 7))}
    labels = {"class": np.arange(3), "other": np.array([2, 1, 0])}
    with pytest.raises(UsageError, match=r"there are: z \[3, 3\]; p .*; name one with --output"):
        score("top1", outputs, labels)
    assert score("top1", outputs, labels, output="z") == 1
    assert score("top1", outputs, labels, output="p") == pytest.approx(1 / 3)
    assert score("top1", outputs, labels, output="p", label="other") == 1
    with pytest.raises(UsageError, match="unknown output 'q'"):
        score("top1", outputs, labels, output="q")
    with pytest.raises(UsageError, match="reads one output"):
        score("top1", outputs, labels, output="features")
    with pytest.raises(DataError, match="label 'label' or .*there: x.*--label"):
        score("top1", {"z": np.eye(3)}, {"x": np.zeros(3)})
    with pytest.raises(DataError, match="a label 'clas' "):
        score("top1", {"z": np.eye(3)}, labels, label="clas")


# -- language models -------------------------------------------------------------------------------


def naive_perplexity(logits, tokens, counted):
    total, count = 0.0, 0
    for row in range(len(tokens)):
        for position in range(1, tokens.shape[1]):
            if not counted[row, position]:
                continue
            z = [float(value) for value in logits[row, position - 1]]
            bottom = math.fsum(math.exp(value) for value in z)
            total -= math.log(math.exp(z[tokens[row, position]]) / bottom)
            count += 1
    return math.exp(total / count)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.sampled_from([2, 3, 64, 65, 66, 150]), SEEDS)
def test_perplexity_is_exp_of_the_mean_negative_log_likelihood(rows, length, seed):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, length, 7)).astype(np.float32) * 3
    tokens = rng.integers(0, 7, (rows, length))
    mask = rng.integers(0, 2, (rows, length))
    mask[0, 1] = 1
    every = np.ones((rows, length), bool)
    outputs = {"logits": logits, "present": np.zeros((rows, 1, length, 4), np.float32)}
    cases = [
        ({"input_ids": tokens}, tokens, every),
        ({"input_ids": tokens, "attention_mask": mask}, tokens, mask),
        ({"input_ids": tokens[::-1], "labels": tokens}, tokens, every),
        ({"labels": np.where(mask, tokens, -100)}, tokens, mask),
    ]
    for labels, wanted, counted in cases:
        want = naive_perplexity(logits, wanted, counted)
        assert score("perplexity", outputs, labels) == pytest.approx(want, rel=1e-12)


def test_perplexity_of_large_logits_and_of_nothing():
    logits = np.array([[[5000.0, 0.0], [0.0, -5000.0]]], np.float32)
    assert score("perplexity", {"z": logits}, {"input_ids": np.array([[1, 0]])}) == 1
    assert math.isnan(score("perplexity", {"z": logits}, {"input_ids": np.array([[1, -100]])}))


def test_perplexity_weighs_windows_by_their_tokens():
    chosen = metric("perplexity")
    rows = np.array([[2 * math.log(4), 2.0], [6 * math.log(2), 6.0]])
    assert chosen.score(rows) == pytest.approx(math.exp(10 * math.log(2) / 8))


@pytest.mark.parametrize(
    ("tokens", "what"),
    [
        (np.array([[0, 1, 2]]), r"int64 \[1, 3\] don't fit logits of \[1, 2, 4\]"),
        (np.array([[0.0, 1.0]]), "float64"),
        (np.array([[0, 4]]), "token 4 is not among the logits' 4; .*-100"),
        (np.array([[0, -1]]), "token -1"),
    ],
)
def test_tokens_that_do_not_fit(tokens, what):
    with pytest.raises(DataError, match=what):
        score("perplexity", {"z": np.zeros((1, 2, 4))}, {"input_ids": tokens})


# -- sentence encoders -----------------------------------------------------------------------------

TIED = hnp.arrays(np.float64, st.integers(2, 30), elements=st.sampled_from([0.0, 1.0, 2.5, 7.0]))


@given(TIED)
def test_ranks_of_equal_values_are_the_mean_of_their_places(values):
    for rank, value in zip(average_ranks(values), values, strict=True):
        places = [i + 1 for i, other in enumerate(sorted(values)) if other == value]
        assert rank == sum(places) / len(places)


@given(st.permutations(range(12)))
def test_spearman_without_ties_is_the_textbook_formula(order):
    rows = np.stack([np.arange(12.0), np.array(order, float)], axis=1)
    squares = sum((i - j) ** 2 for i, j in enumerate(order))
    want = 1 - 6 * squares / (12 * (12**2 - 1))
    assert metric("spearman").score(rows) == pytest.approx(want, abs=1e-12)


def test_spearman_sees_cosines_and_order_only():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 9, 5)).astype(np.float32)
    cosine = [(x @ y) / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    sides = {
        "a.e": a * 3,
        "b.e": b,
        "a.states": np.zeros((9, 4, 5)),
        "b.states": np.ones((9, 4, 5)),
    }
    rows = metric("spearman").contributions(sides, {"score": np.exp(cosine)})
    np.testing.assert_allclose(rows[:, 0], cosine, rtol=1e-5)
    assert metric("spearman").score(rows) == pytest.approx(1)
    assert score("spearman", sides, {"score": -np.array(cosine)}) == pytest.approx(-1)
    assert math.isnan(score("spearman", sides, {"score": np.ones(9)}))


def test_pairs_that_can_not_be_scored():
    sides = {"a.e": np.zeros((2, 3)), "b.e": np.ones((2, 3))}
    with pytest.raises(DataError, match="embedding is zero"):
        score("spearman", sides, {"score": np.ones(2)})
    with pytest.raises(DataError, match="don't fit 2 pairs"):
        score("spearman", sides, {"score": np.ones(3)})
    with pytest.raises(DataError, match="don't fit 2 pairs"):
        score("spearman", sides, {"score": np.array(["a", "b"])})


# -- recognisers -----------------------------------------------------------------------------------


def one_hot(*paths: list[int], classes: int = 4) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[np.array(paths)]


def with_alphabet(path: Path, character: str | None) -> Path:
    proto = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    if character is not None:
        onnx.helper.set_model_props(proto, {"character": character})
    onnx.save(proto, path)
    return path


def test_character_errors_by_the_labels_length(tmp_path):
    models = [with_alphabet(tmp_path / "1.onnx", None), with_alphabet(tmp_path / "2.onnx", "a\nb")]
    cer = metric("cer").bind(models)
    # Reads "ab", "a b", "aa": the blank keeps the two apart.
    scores = one_hot([1, 1, 0, 2], [1, 3, 3, 2], [1, 0, 1, 0])
    rows = cer.contributions({"z": scores}, {"text": np.array(["ab", "ab", "aab"])})
    assert rows.tolist() == [[0, 2], [1, 2], [1, 3]]
    assert cer.score(rows) == pytest.approx(2 / 7)
    assert math.isnan(cer.score(rows[:0]))
    with pytest.raises(DataError, match="2 labels don't fit 3 rows"):
        cer.contributions({"z": scores}, {"text": np.array(["ab", "ab"])})


def test_class_numbers_need_no_alphabet():
    scores = one_hot([1, 1, 0, 2], [3, 0, 3, 0])
    tokens = np.array([[1, 2, 0, -100], [3, 1, 3, 3]])
    rows = metric("cer").contributions({"z": scores}, {"tokens": tokens})
    assert rows.tolist() == [[0, 2], [2, 4]]
    with pytest.raises(DataError, match="no model's metadata has an alphabet"):
        metric("cer").contributions({"z": scores}, {"text": np.array(["a", "b"])})
    with pytest.raises(DataError, match="neither text nor classes"):
        metric("cer").contributions({"z": scores}, {"text": np.array([0.5, 1.0])})


# -- functions -------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_scores.py").write_text(
        "import numpy as np\n"
        "def close(outputs, labels): return np.abs(outputs['z'][:, 0] - labels['y']) < 1\n"
        "def words(outputs, labels): return [[1, 3], [2, 5]]\n"
        "def error(outputs, labels): return float(outputs['z'].max())\n"
        "error.better = 'lower'\n"
        "def odd(outputs, labels): return 1\n"
        "odd.better = 'bigger'\n"
        "def fails(outputs, labels): return outputs['nothing']\n"
        "def wrong(outputs, labels): return outputs['z'].reshape(1, 2, 1)\n"
        "def text(outputs, labels): return 'good'\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "own_scores"


def test_functions_give_numbers_or_amounts_with_weights(module):
    outputs, labels = {"z": np.array([[1.0], [5.0]])}, {"y": np.array([1.5, 2.0])}
    assert score(f"{module}:close", outputs, labels) == 0.5
    assert score(f"{module}:words", outputs, labels) == 3 / 8
    assert score(f"{module}:error", outputs, labels) == 5
    assert metric(f"{module}:error").better == "lower"
    assert metric(f"{module}:close").better == "higher"
    assert metric(f"{module}:close").name == f"{module}:close"


def test_functions_that_fail_say_so(module):
    outputs = {"z": np.array([[1.0], [5.0]])}
    for name, what in {
        "fails": r"own_scores:fails: raised KeyError \('nothing'\)",
        "wrong": r"gives an array of shape \[1, 2, 1\]",
        "text": "raised ValueError",
    }.items():
        with pytest.raises(DataError, match=what):
            score(f"{module}:{name}", outputs, {})
    with pytest.raises(UsageError, match="`better` is 'bigger'"):
        metric(f"{module}:odd")
    with pytest.raises(UsageError, match="leave --output and --label out"):
        metric(f"{module}:close", label="y")
    with pytest.raises(DataError, match="not a function"):
        metric(f"{module}:number")
    with pytest.raises(DataError, match="there is no 'nix'"):
        metric(f"{module}:nix")
