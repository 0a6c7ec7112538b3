"""Requests with which Triton warms a model up."""

import numpy as np
import pytest
from artifacts import identity, write_artifact
from harness import model
from onnx import TensorProto
from tritonrules import serve

from qgraph.deploy import deploy
from qgraph.errors import DataError


def test_warming_up_with_data(artifact, tmp_path, parsed) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "d.npz", x=x)
    done, config = serve(artifact, tmp_path / "repo", parsed, data=str(tmp_path / "d.npz"))
    value = config.model_warmup[1].inputs["x"]
    assert list(value.dims) == [4] and config.model_warmup[1].batch_size == 8
    assert (done.folder / "warmup" / value.input_data_file).read_bytes() == x[0].tobytes()


def test_warming_up_with_strings(tmp_path, parsed) -> None:
    artifact = write_artifact(tmp_path / "a", identity(["N", 2], TensorProto.STRING))
    np.savez(tmp_path / "d.npz", x=np.array([["ab", "é"]]))
    done = deploy(artifact, "triton", tmp_path / "repo", data=str(tmp_path / "d.npz"))
    raw = (done.folder / "warmup" / "0").read_bytes()
    assert raw == b"\x02\0\0\0ab" + b"\x02\0\0\0" + "é".encode()


def test_no_warm_up(artifact, tmp_path, parsed) -> None:
    assert not serve(artifact, tmp_path / "repo", parsed, warm_up="none")[1].model_warmup
    with pytest.raises(DataError):
        deploy(artifact, "triton", tmp_path / "repo", name="b", data=str(tmp_path / "no.npz"))


def test_a_model_that_takes_no_zeros_is_not_warmed_up_with_them(tmp_path, parsed) -> None:
    # 12 elements are put into rows of x: no zero, and nothing random, divides them.
    proto = model(
        "m (int64[A] x) => (float[N,M] y) { y = Reshape(w, x) }",
        {"w": np.arange(12, dtype=np.float32)},
    )
    artifact = write_artifact(tmp_path / "a", proto)
    done, config = serve(artifact, tmp_path / "repo", parsed)
    assert not config.model_warmup and any("no warm-up" in line for line in done.remarks.notes)
