import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_models import affine, qdq_conv, small_cnn, text

from qgraph.errors import EngineError, UsageError
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.exact_products import overflows
from qgraph.runtime.executed import executed_ops, read_profile

CPU = backend("onnxruntime-cpu")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_quantized_conv_runs_as_qlinearconv(rng: np.random.Generator, temporary: Path) -> None:
    feeds = {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    ops = executed_ops(qdq_conv().SerializeToString(), feeds, CPU)
    by_type = {op.op_type: op for op in ops}
    assert "QLinearConv" in by_type and "Conv" not in by_type
    conv = by_type["QLinearConv"]
    assert conv.provider == "CPUExecutionProvider"
    # Where uint8 by int8 overflows, the weights become uint8.
    assert conv.input_dtypes[0] == "uint8" and ("int8" in conv.input_dtypes) != overflows()
    assert conv.output_dtypes == ("uint8",)
    assert conv.time_us is not None and conv.time_us >= 0
    assert list(temporary.iterdir()) == []


def test_batchnorm_is_seen_to_be_folded(rng: np.random.Generator) -> None:
    feeds = {"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)}
    types = [op.op_type for op in executed_ops(small_cnn().SerializeToString(), feeds, CPU)]
    assert "BatchNormalization" not in types and "Conv" in types


def test_kernels_of_a_loop_count_all_their_iterations() -> None:
    body = (
        "g (int64 n, float[4] x) => (float[4] y) <bool go = {1}> {"
        "  y = Loop (n, go, x) <body = b (int64 i, bool c, float[4] v) => (bool d, float[4] w)"
        "    { d = Identity(c) w = Sin(v) }> }"
    )
    x = np.ones(4, np.float32)
    feeds = {"n": np.array(5, np.int64), "x": x}
    ops = executed_ops(text(body).SerializeToString(), feeds, CPU, runs=2)
    assert [op.op_type for op in ops].count("Sin") == 1
    assert all(op.time_us is not None for op in ops)


def test_only_profiled_sessions_tell(temporary: Path) -> None:
    x = {"x": np.ones((1, 3), np.float32), "w": np.ones(3, np.float32)}
    model = affine().SerializeToString()
    with CPU.open(model) as session, pytest.raises(UsageError, match="profile=True"):
        session.executed()
    with CPU.open(model, EngineOptions(profile=True)) as session:
        session.run(x)
        first = session.executed()
        session.run(x)
        assert session.executed() == first and first
    closed = CPU.open(model, EngineOptions(profile=True))
    assert len(list(temporary.iterdir())) == 1
    closed.close()
    with pytest.raises(EngineError, match="closed"):
        closed.executed()
    with pytest.raises(EngineError, match="refuses"):
        CPU.open(b"bad", EngineOptions(profile=True))
    assert list(temporary.iterdir()) == []


def test_time_is_the_median_call_times_calls_a_run(tmp_path: Path) -> None:
    def kernel(name: str, dur: int, index: str, op: str) -> dict[str, Any]:
        args = {"op_name": op, "provider": "CPUExecutionProvider", "node_index": index}
        types = {"input_type_shape": [{"double": [1]}], "output_type_shape": [{"float": [1]}]}
        full = f"{name}_kernel_time"
        return {"cat": "Node", "name": full, "dur": dur, "args": args | types}

    runs = [{"cat": "Session", "name": "model_run", "dur": 1, "args": {}}] * 2
    body = [kernel("a", dur, "1", "Sin") for dur in (900, 10, 10, 10, 12, 10)]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([*runs, *body, kernel("b", 7, "2", "Cos")]))
    sin, cos = read_profile(path)
    assert (sin.name, sin.op_type, sin.time_us) == ("a", "Sin", 30.0)
    assert (cos.time_us, cos.input_dtypes, cos.output_dtypes) == (3.5, ("float64",), ("float32",))


def test_unreadable_profile(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('[{"cat": ')
    for name in ("cut.json", "none.json"):
        with pytest.raises(EngineError, match="profile can't be read"):
            read_profile(tmp_path / name)
