"""Data for decoders need not have their caches."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from llamas import TINY, random_weights

import qgraph
from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.data import open_data
from qgraph.errors import DataError
from qgraph.graph import Graph
from qgraph.kv_cache import cache_axes_of


def spec(name, dtype, *shape):
    return SimpleNamespace(name=name, dtype=dtype, shape=shape)


INPUTS = [
    spec("ids", "int64", "batch", "seq"),
    spec("past.key", "float32", "batch", 2, "past", 4),
    spec("past.value", "float16", "batch", 2, 4, "past"),
]
AXES = {"past.key": 2, "past.value": 3}
IDS = np.arange(15).reshape(3, 5)


def opened(source, inputs=INPUTS, **options):
    return open_data(source, inputs, caches=AXES, **options)


def check(samples, lengths=(5, 5, 5)):
    assert [sample["ids"].shape for sample in samples] == [(1, length) for length in lengths]
    for sample in samples:
        assert list(sample) == ["ids", "past.key", "past.value"]
        assert sample["past.key"].shape == (1, 2, 0, 4)
        assert sample["past.key"].dtype == np.float32
        assert sample["past.value"].shape == (1, 2, 4, 0)
        assert sample["past.value"].dtype == np.float16


def test_caches_are_fed_empty_whatever_the_source(tmp_path):
    np.savez(tmp_path / "d.npz", ids=IDS)
    np.save(tmp_path / "d.npy", IDS)
    check(list(opened(tmp_path / "d.npz")))
    check(list(opened(tmp_path / "d.npy")))
    check(list(opened({"ids": IDS})))
    check(list(opened(IDS)))
    check(list(opened([{"ids": row} for row in IDS])))
    check(list(opened([{"ids": IDS}])))  # one item with three rows
    check(list(opened({"ids": [np.arange(4), np.arange(7)]})), (4, 7))
    for kind in ("npz", "npy"):
        folder = tmp_path / kind
        folder.mkdir()
        for index, row in enumerate(IDS):
            (np.savez if kind == "npz" else np.save)(
                folder / f"{index}.{kind}", **({"ids": row} if kind == "npz" else {"arr": row})
            )
        check(list(opened(folder)))


def test_batches_of_empty_caches_have_the_rows_of_the_batch():
    (batch,) = opened({"ids": IDS}).batches(3)
    np.testing.assert_array_equal(batch["ids"], IDS)
    assert batch["past.key"].shape == (3, 2, 0, 4)


def test_caches_that_the_data_has_are_taken():
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((3, 2, 6, 4)).astype(np.float32)
    values = rng.standard_normal((3, 2, 4, 6)).astype(np.float16)
    samples = list(opened({"ids": IDS, "past.key": keys, "past.value": values}))
    np.testing.assert_array_equal(samples[1]["past.key"], keys[1:2])
    np.testing.assert_array_equal(samples[2]["past.value"], values[2:3])
    with pytest.raises(DataError, match="'past' is 6 in input 'past.key' and 5"):
        list(opened({"ids": IDS, "past.key": keys, "past.value": values[..., :5]}))


def test_other_inputs_are_still_needed():
    mask = spec("mask", "int64", "batch", "seq")
    with pytest.raises(DataError, match="has no array for input 'mask'"):
        opened({"ids": IDS}, [*INPUTS, mask])
    with pytest.raises(DataError, match=r"can't feed 2 inputs \(ids, mask\)"):
        opened(IDS, [*INPUTS, mask])
    with pytest.raises(DataError, match=r"has no array for input 'past\.key'"):
        open_data({"ids": IDS}, INPUTS)


def test_random_data_leaves_caches_empty_unless_a_length_is_said():
    (sample,) = opened("random:seq=7", samples=1)
    assert sample["ids"].shape == (1, 7) and sample["past.key"].shape == (1, 2, 0, 4)
    (sample,) = opened("random:past=3", samples=1)
    assert sample["past.key"].shape == (1, 2, 3, 4) and np.abs(sample["past.key"]).max() > 0


def test_a_fixed_batch_and_layers_in_one_tensor():
    fixed = [spec("ids", "int64", 2, "seq"), spec("past", "float32", 2, 4, "p", 8)]
    data = open_data({"ids": np.arange(12).reshape(4, 3)}, fixed, caches={"past": 2})
    assert [s["past"].shape for s in data] == [(2, 4, 0, 8)] * 2
    stacked = [spec("ids", "int64", "n", "seq"), spec("past", "float32", 6, "n", "p", 8)]
    data = open_data({"ids": IDS}, stacked, caches={"past": 2})
    assert [s["past"].shape for s in data] == [(6, 1, 0, 8)] * 3


@pytest.fixture
def decoder(tmp_path):
    path = tmp_path / "m.onnx"
    onnx_io.save(Graph(build(TINY, random_weights(), kv=True)), path)
    return path


def test_a_decoder_is_calibrated_and_verified_on_ids_alone(decoder, tmp_path, monkeypatch):
    monkeypatch.setattr("qgraph.engine_choice.BUDGET_S", 0.1)
    ids = np.random.default_rng(0).integers(0, TINY.vocabulary, (8, 12))
    artifact = qgraph.compile(
        decoder,
        output=tmp_path / "out",
        precision="int8",
        data={"input_ids": ids},
        settings=["calibrate.observer=minmax"],
    )
    accuracy = artifact.manifest.accuracy
    assert accuracy is not None and accuracy.data == "held out" and accuracy.samples > 0
    ops = {node.op_type for node in onnx.load(artifact.model_path).graph.node}
    assert "QuantizeLinear" in ops
    caches = [f"past_key_values.{n}.{part}" for n in (0, 1) for part in ("key", "value")]
    with artifact.open() as session:
        assert cache_axes_of(artifact.model_path, session.inputs) == dict.fromkeys(caches, 2)
        feeds = {name: np.zeros((1, 2, 0, 8), np.float32) for name in caches}
        found = session.run({"input_ids": ids[:1], **feeds})
    assert found["present.1.value"].shape == (1, 2, 12, 8)
