"""Opening engines: refusals everywhere, and real runs where a GPU can."""

import importlib.util

import numpy as np
import pytest

import qgraph
from models.digits.data import load as load_digits
from qgraph.errors import DataError, EngineError
from qgraph.runtime.backend import EngineOptions, Session
from qgraph.runtime.compare import compare
from qgraph.runtime.layers import map_layers
from qgraph.runtime.reference import open_reference
from qgraph.runtime.tensorrt import session as module
from qgraph.runtime.tensorrt.backend import TensorRt
from qgraph.runtime.tensorrt.device import Device, device
from qgraph.runtime.tensorrt.library import MODULES, load_library
from qgraph.runtime.tensorrt.session import cant_run

HERE = any(importlib.util.find_spec(name) for name in MODULES)
needs_builder = pytest.mark.skipif(
    not HERE, reason="neither tensorrt_rtx nor tensorrt is installed (tensorrt-rtx-cu13 on PyPI)"
)
WHY_NOT = cant_run(load_library()) if HERE else "there is no library"
DIGITS = "models/digits/digits_cnn.onnx"


@needs_builder
@pytest.mark.parametrize(
    ("here", "says"),
    [
        (None, "no NVIDIA GPU is visible"),
        (Device("Hopper card", "9.0"), r"not on 9\.0 \(Hopper card\); install TensorRT"),
    ],
)
def test_where_no_engine_runs_it_says_why(here, says, monkeypatch):
    library = load_library()
    if here is not None and not library.capabilities:
        pytest.skip("TensorRT builds for the GPU in the machine, whichever it is")
    monkeypatch.setattr(module, "device", lambda: here)
    reason = cant_run(library)
    assert reason is not None
    with pytest.raises(EngineError, match=says):
        raise EngineError(reason)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return qgraph.compile(
        DIGITS,
        target="tensorrt",
        recipe="fast",
        settings=["tensorrt.shapes=['image:1x1x8x8,4x1x8x8,8x1x8x8']"],
        data={"image": load_digits().train_x[:20]},
        output=tmp_path_factory.mktemp("session") / "out",
    )


@needs_builder
@pytest.mark.skipif(device() is not None, reason="there is a GPU")
def test_an_artifact_with_an_engine_says_why_it_can_not_be_opened(artifact):
    for use in (artifact.open, lambda: TensorRt().open(artifact.model_path)):
        with pytest.raises(EngineError, match="NVIDIA GPU") as caught:
            use()
        assert "\n" not in str(caught.value)


@needs_builder
def test_float_precision_is_in_the_graph(artifact):
    with pytest.raises(EngineError, match="float_precision bf16 is not offered"):
        TensorRt().open(artifact.model_path, EngineOptions(float_precision="bf16"))


@pytest.mark.skipif(WHY_NOT is not None, reason=f"engines can't run here: {WHY_NOT}")
def test_an_engine_runs_as_the_reference_does(artifact):
    images = load_digits().test_x[:8]
    plan = {name: entry[0] for name, entry in artifact.read_json("explain.json")["nodes"].items()}
    with (
        TensorRt().open(artifact.model_path, EngineOptions(profile=True)) as session,
        open_reference(artifact.model_path) as reference,
    ):
        assert isinstance(session, Session)
        for count in (1, 4, 8):
            feeds = {"image": images[:count]}
            (found,) = compare(reference.run(feeds), session.run(feeds))
            assert found.sqnr_db is not None and found.sqnr_db > 30
        with pytest.raises(DataError, match="outside of the engine's profiles"):
            session.run({"image": np.concatenate([images, images])})
        mapped = map_layers(session.layers(), plan)  # type: ignore[attr-defined]
        assert any(each.layer.nodes for each in mapped) and session.executed()
    with pytest.raises(EngineError, match="closed"):
        session.run({"image": images[:1]})
