"""The engine's file and its record: nothing reaches the library that it can't load."""

import hashlib
import json
from dataclasses import replace

import pytest

from qgraph.errors import EngineError
from qgraph.runtime.builder import Built
from qgraph.runtime.tensorrt import plan as module
from qgraph.runtime.tensorrt.device import Device
from qgraph.runtime.tensorrt.library import Library
from qgraph.runtime.tensorrt.plan import PLAN, RECORD, misfit, plan_of, read_plan, write_plan

ADA = Device("Ada card", "8.9")
HOPPER = Device("Hopper card", "9.0")


class Module:
    __version__ = "1.7.1"


class Newer:
    __version__ = "1.8.0"


RTX = Library(Module, "TensorRT-RTX", ("8.6", "8.9"))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a model")
    return path


def written(model, **changes):
    engine = b"an engine"
    record = {
        "model": model.name,
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "library": "TensorRT-RTX",
        "version": "1.7.1",
        "capabilities": ["8.6", "8.9"],
        "profiles": [{"x": [[1, 2], [2, 2], [4, 2]]}],
        "sha256": hashlib.sha256(engine).hexdigest(),
        "bytes": len(engine),
        **changes,
    }
    write_plan(Built(engine, "TensorRT-RTX 1.7.1", 0.1, 3, record), model)
    found = plan_of(model)
    assert found is not None
    return found


def test_it_is_read_back(model):
    found = written(model)
    assert read_plan(model, found, RTX, ADA) == b"an engine"
    assert found.profiles[0]["x"] == ((1, 2), (2, 2), (4, 2))
    assert sorted(file.name for file in model.parent.iterdir()) == [RECORD, PLAN, "model.onnx"]


def test_none_and_that_of_another_model(model):
    assert plan_of(model) is None
    written(model)
    model.write_bytes(b"another model")
    assert plan_of(model) is None
    assert (
        plan_of(model.with_name("other.onnx")) is None
        if model.rename(model.with_name("other.onnx"))
        else False
    )


@pytest.mark.parametrize(
    ("library", "here", "says"),
    [
        (replace(RTX, module=Newer), ADA, "was built by TensorRT-RTX 1.7.1, installed is 1.8.0"),
        (
            Library(Module, "TensorRT", ()),
            ADA,
            "built by TensorRT-RTX 1.7.1, installed is TensorRT 1",
        ),
        (RTX, None, "needs an NVIDIA GPU, and none is visible"),
        (RTX, HOPPER, r"runs on compute capability 8\.6, 8\.9, not on 9\.0 \(Hopper card\)"),
    ],
)
def test_elsewhere_it_says_why(library, here, says, model):
    with pytest.raises(EngineError, match=f"engine.plan: .*{says}.*; compile the model again"):
        read_plan(model, written(model), library, here)


def test_a_version_compatible_engine_is_for_later_versions_of_the_same_major_one(model):
    found = written(model, options={"version_compatible": True})
    assert misfit(found, replace(RTX, module=Newer), ADA) is None
    older = found.model_copy(update={"version": "1.9.0"})
    assert "installed is 1.8.0" in (misfit(older, replace(RTX, module=Newer), ADA) or "")


def test_an_engine_for_any_ampere_runs_on_what_came_later(model):
    found = written(model, options={"hardware": "any-ampere"})
    assert misfit(found, RTX, HOPPER) is None
    assert misfit(found, RTX, Device("Turing card", "7.5")) is not None


def test_a_damaged_engine_is_not_loaded(model):
    found = written(model)
    plan = model.with_name(PLAN)
    plan.write_bytes(b"an engins")
    with pytest.raises(EngineError, match="has changed since it was built"):
        read_plan(model, found, RTX, ADA)
    plan.write_bytes(b"an")
    with pytest.raises(EngineError, match="has another size"):
        read_plan(model, found, RTX, ADA)
    plan.unlink()
    with pytest.raises(EngineError, match="can't be read"):
        read_plan(model, found, RTX, ADA)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"model": 3}', b"\xff", b"9" * (2 << 20)])
def test_a_damaged_record(content, model):
    written(model)
    model.with_name(RECORD).write_bytes(content)
    with pytest.raises(EngineError, match=r"engine\.json: is damaged"):
        plan_of(model)


def test_a_crash_between_the_two_files_leaves_no_record_of_another_engine(model, monkeypatch):
    written(model)
    write = module._write

    def fail(path, content):
        if path.name == RECORD:
            raise OSError("the disk is full")
        write(path, content)

    monkeypatch.setattr(module, "_write", fail)
    record = json.loads(model.with_name(RECORD).read_bytes())
    with pytest.raises(OSError, match="full"):
        write_plan(Built(b"next", "", 0, 0, record), model)
    assert plan_of(model) is None and not list(model.parent.glob("*.tmp"))
