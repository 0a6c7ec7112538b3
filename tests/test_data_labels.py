"""Labels travel with their samples, from every source and through every way of reading."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qgraph.data import ImageOptions, open_data
from qgraph.data.inputs import Sample
from qgraph.errors import DataError

IMAGES = ImageOptions(resize=None, crop=None)


def spec(name: str, dtype: Any, *shape: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, dtype=dtype, shape=shape)


X = [spec("x", "float32", "n", 2)]
FIXED = [spec("x", "float32", 3, 2)]
STATE = [spec("x", "float32", None, None), spec("rate", "int64")]
PICTURE = [spec("image", "float32", "n", 3, 4, 4)]


def rows(count: int) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)


def read(source: Any, inputs: Any = X, **options: Any) -> list[Sample]:
    return list(open_data(source, inputs, labelled=True, **options).labelled())


def test_npz_labels_are_arrays_as_long_as_the_inputs(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "d.npz",
        x=rows(5),
        label=np.arange(5),
        text=np.array([f"t{i}" for i in range(5)]),
        box=np.arange(20).reshape(5, 4),
        classes=np.arange(1000),
        pickled=np.array([{}] * 5, object),
    )
    for index, (feeds, labels) in enumerate(read(tmp_path / "d.npz", samples=4)):
        assert feeds["x"].tolist() == [[index, index]]
        assert set(labels) == {"label", "text", "box"}
        assert labels["label"].tolist() == [index] and labels["text"].tolist() == [f"t{index}"]
        assert labels["box"].shape == (1, 4) and labels["box"][0, 0] == 4 * index


def test_labels_are_read_only_where_asked_for(tmp_path: Path) -> None:
    source = {"x": rows(3), "label": np.arange(3)}
    assert [sample.labels for sample in open_data(source, X).labelled()] == [{}] * 3
    assert all(set(feeds) == {"x"} for feeds in open_data(source, X, labelled=True))
    for given_data in (source, [{"x": row, "label": 1} for row in rows(3)]):
        plain, asked = (open_data(given_data, X, labelled=on) for on in (False, True))
        assert plain.fingerprint() == asked.fingerprint()


def test_values_with_and_without_a_batch_axis() -> None:
    one = {"x": rows(4)[2], "label": 7, "tokens": [5, 6, 7]}
    several = {"x": rows(4), "label": np.arange(4), "tokens": np.arange(8).reshape(4, 2)}
    single = {"x": rows(1), "label": np.array([9]), "tokens": [[1, 2]]}
    bare = {"x": rows(1), "label": 9, "tokens": [1, 2]}
    for samples in (read(iter([item])) for item in (one, single, bare)):
        assert [label.shape[0] for label in samples[0].labels.values()] == [1, 1]
        assert samples[0].labels["label"].shape == (1,)
        assert samples[0].labels["tokens"].ndim == 2
    cut = read([several])
    assert [sample.labels["label"].tolist() for sample in cut] == [[0], [1], [2], [3]]
    assert cut[3].labels["tokens"].tolist() == [[6, 7]]
    with pytest.raises(
        DataError, match=r"sample 0, label 'label': has the shape \[3\] beside .* 4"
    ):
        read([several | {"label": np.arange(3)}])
    with pytest.raises(DataError, match="label 'label': is not an array"):
        read([one | {"label": [[1], [2, 3]]}])


def test_rows_and_labels_are_grouped_to_the_model_s_batch() -> None:
    whole = [{"x": rows(3), "label": np.arange(3)}]
    apart = [{"x": row, "label": index} for index, row in enumerate(rows(7))]
    assert [sample.labels["label"].tolist() for sample in read(whole, FIXED)] == [[0, 1, 2]]
    for source in (apart, {"x": rows(7), "label": np.arange(7)}):
        found = read(source, FIXED)
        assert [sample.labels["label"].tolist() for sample in found] == [[0, 1, 2], [3, 4, 5]]
        assert all((s.feeds["x"][:, 0] == s.labels["label"]).all() for s in found)
    # A label that some rows of a batch lack is none of the batch's.
    del apart[1]["label"]
    assert [set(sample.labels) for sample in read(apart, FIXED)] == [set(), {"label"}]


def test_models_without_a_batch_axis() -> None:
    item = {"x": np.zeros((1, 6), np.float32), "rate": np.array(16000)}
    found = read([item | {"label": 3, "parts": np.arange(5)}], STATE)
    assert found[0].labels["label"].tolist() == [3]
    assert found[0].labels["parts"].tolist() == [[0, 1, 2, 3, 4]]


def test_ragged_arrays_and_files(tmp_path: Path) -> None:
    inputs = [spec("x", "float32", "n", None)]
    lines = [np.full(size, size, np.float32) for size in (3, 5)]
    listed = {"x": lines, "tokens": [np.arange(2), np.arange(4)]}
    for index, line in enumerate(lines):
        np.savez(tmp_path / f"{index}.npz", x=line[None], tokens=listed["tokens"][index])
    for source in (listed, tmp_path):
        found = read(source, inputs)
        assert [sample.labels["tokens"].tolist() for sample in found] == [[[0, 1]], [[0, 1, 2, 3]]]
        assert [sample.feeds["x"].shape for sample in found] == [(1, 3), (1, 5)]


@given(st.integers(2, 30), st.integers(1, 10), st.booleans())
def test_labels_follow_the_split(count: int, held: int, once: bool) -> None:
    items = [{"x": row, "label": index} for index, row in enumerate(rows(count))]
    if held >= count:
        held = 1
    source = iter(items) if once else {"x": rows(count), "label": np.arange(count)}
    data = open_data(source, X, labelled=True)
    kept, out = (list(side.labelled()) for side in data.split(held))
    assert all(s.feeds["x"][0, 0] == s.labels["label"][0] for s in [*kept, *out])
    seen = sorted(int(s.labels["label"][0]) for s in [*kept, *out])
    assert seen == list(range(count))[: len(seen)] and len(seen) in (count, 512)


# -- images ----------------------------------------------------------------------------------------


def pictures(root: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (index, index, index)).save(root / name)
    return root


def labels_of(root: Path, **options: Any) -> list[Any]:
    found = read(root, PICTURE, images=IMAGES, **options)
    return [sample.labels["label"].item() if sample.labels else None for sample in found]


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    root = pictures(tmp_path, "dog/1.png", "cat/1.png", "cat/more/2.png", "Emu/1.png")
    # Capital letters come first; images come in the natural order of their paths.
    assert labels_of(root) == [0, 1, 1, 2]
    drawn = labels_of(root, samples=1, seed=3)
    assert len(drawn) == 1 and drawn[0] in (0, 1, 2)


def test_sub_folders_with_numbers_are_those_classes(tmp_path: Path) -> None:
    assert labels_of(pictures(tmp_path, "2/a.png", "10/a.png", "7/a.png")) == [2, 7, 10]


def test_folders_that_are_no_classes(tmp_path: Path) -> None:
    assert labels_of(pictures(tmp_path / "flat", "a.png", "b.png")) == [None, None]
    assert labels_of(pictures(tmp_path / "mixed", "a.png", "b/c.png")) == [None, None]
    assert labels_of(pictures(tmp_path / "one", "images/a.png", "images/b.png")) == [None, None]


def test_a_table_of_labels(tmp_path: Path) -> None:
    root = pictures(tmp_path, "a.png", "sub/b.png")
    table = root / "labels.csv"
    table.write_text("path,label\na.png,3\nsub/b.png,12\nother.png,5\n")
    assert labels_of(root) == [3, 12]
    table.write_text('a.png,"one, two"\n\nsub/b.png,12\n')
    assert labels_of(root) == ["one, two", "12"]
    table.write_text("a.png,3\n")
    with pytest.raises(DataError, match=r"labels.csv: has no line for sub/b.png"):
        labels_of(root)
    table.write_text("a.png,3,4\nsub/b.png,12\n")
    with pytest.raises(DataError, match="a line of 3 fields"):
        labels_of(root)
    table.write_bytes(b"a.png,\xff\n")
    with pytest.raises(DataError, match="labels.csv: can't be read"):
        labels_of(root)
