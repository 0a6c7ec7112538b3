import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from models.zoo import windows
from models.zoo.windows import PARTS, SEPARATOR, cut, part_of, python_reference
from qgraph.errors import DataError


@pytest.fixture
def tokenizer():
    """A word is a token: a to j are 1 to 10, anything else 11."""
    vocabulary = {SEPARATOR: 0} | {word: i for i, word in enumerate("abcdefghij", 1)} | {"?": 11}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def test_texts_follow_each_other_with_an_end_behind_each(tokenizer):
    found = cut(["a b c", "d e f g"], tokenizer, 3)
    assert found.dtype == np.int64 and found.tolist() == [[1, 2, 3], [0, 4, 5], [6, 7, 0]]
    assert cut(["a b c", "d"], tokenizer, 4).tolist() == [[1, 2, 3, 0]]


def test_too_little_text_is_refused(tokenizer):
    with pytest.raises(DataError, match="has 3 tokens, a window takes 4"):
        cut(["a b"], tokenizer, 4)


def test_parts_share_no_window():
    rows = np.arange(10).reshape(5, 2)
    everything, calibration, evaluation = (part_of(rows, part) for part in PARTS)
    assert everything.tolist() == rows.tolist() == [*calibration.tolist(), *evaluation.tolist()]
    assert len(calibration) == 3


def test_command_cuts_files_and_else_pythons_reference(tokenizer, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a b c d", encoding="utf-8")
    place = tmp_path / "tokenizer.json"
    tokenizer.save(str(place))
    options = ["--tokenizer", str(place), "-o", str(tmp_path / "w.npz"), "--length"]
    assert windows.main([str(tmp_path / "a.txt"), *options, "2"]) == 0
    assert np.load(tmp_path / "w.npz")["input_ids"].tolist() == [[1, 2], [3, 4]]
    assert windows.main([*options, "512", "--part", "evaluation"]) == 0
    assert len(python_reference()) > 50
    assert len(np.load(tmp_path / "w.npz")["input_ids"]) > 20
    assert "windows of 512 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["text", "tokenizer"])
def test_missing_files_are_one_line(tokenizer, tmp_path, capsys, missing):
    place = tmp_path / "tokenizer.json"
    if missing == "text":
        tokenizer.save(str(place))
    options = ["--tokenizer", str(place), "-o", str(tmp_path / "w.npz")]
    texts = [str(tmp_path / "none.txt")] if missing == "text" else []
    assert windows.main([*texts, *options]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1
    assert not (tmp_path / "w.npz").exists()
