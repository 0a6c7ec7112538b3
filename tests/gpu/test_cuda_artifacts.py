"""What target `cuda` compiles, on the GPU: every precision, a decoder with its cache, options, layers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

import qgraph
from models.zoo.llama import Config, shapes
from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.cli import app
from qgraph.graph import Graph
from qgraph.runtime import backend
from qgraph.runtime.compare import compare
from qgraph.runtime.reference import open_reference

CUDA = backend("onnxruntime-cuda")
TINY = Config(2, 64, 4, 2, 128, 96, 64)
# Least signal to noise of random layers, decibels: what these widths of mantissas and codes leave.
PRECISIONS = {"fp32": 80, "fp16": 40, "int8-weights": 25, "int4": 10, "fp8": 15}


@pytest.fixture(autouse=True)
def needs_cuda() -> None:
    if reason := CUDA.unavailable():
        pytest.skip(f"the CUDA engine can't run here: {reason}")


def layers(path: Path) -> Path:
    """Two products with a normalization between them, as few bits and fp8 want them."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((256, 512)).astype(np.float32) / 16,
        "w2": rng.standard_normal((512, 256)).astype(np.float32) / 22,
        "g": np.ones(256, np.float32),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["n"], name="norm"),
        helper.make_node("MatMul", ["n", "w1"], ["a"], name="up"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="down"),
        helper.make_node("Add", ["c", "x"], ["y"], name="residual"),
    ]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", 1, ["n", 16, 256])],
        [helper.make_tensor_value_info("y", 1, ["n", 16, 256])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    )
    return path


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((count, 16, 256)).astype(np.float32)}


def compiled(path: Path, precision: str, **more: Any) -> Any:
    return qgraph.compile(
        path,
        output=path.with_suffix(f".{precision}"),
        target="cuda",
        precision=precision,
        data=[rows(1, seed) for seed in range(8)],
        **more,
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_answers_as_the_original(precision: str, tmp_path: Path) -> None:
    path = layers(tmp_path / "m.onnx")
    more = {"settings": ["weight_only.head=true"]} if precision.startswith("int") else {}
    artifact = compiled(path, precision, **more)
    assert artifact.manifest.precision == precision
    with artifact.open() as session, open_reference(path) as reference:
        assert session.device == "cuda"
        for step in range(4):
            feeds = rows(2, 100 + step)
            (found,) = compare(reference.run(feeds), session.run(feeds))
            assert found.sqnr_db is not None and found.sqnr_db > PRECISIONS[precision]


def test_int8_asked_for_is_not_slower_and_says_so_first(tmp_path: Path) -> None:
    artifact = compiled(layers(tmp_path / "m.onnx"), "int8")
    assert artifact.manifest.precision == "fp16" and "instead" in artifact.manifest.warnings[0]


@pytest.mark.parametrize(
    ("precision", "settings"),
    [("fp16", []), ("int4", ["weight_only.min_elements=1", "weight_only.group=32"])],
)
def test_a_decoders_cache_grows_by_one_token(
    precision: str, settings: list[str], tmp_path: Path
) -> None:
    """With channels last onnxruntime loses the last token, so that is not tried."""
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(s).astype(np.float32) * 0.1 for n, s in shapes(TINY).items()}
    onnx_io.save(Graph(build(TINY, weights, kv=True)), tmp_path / "m.onnx")

    def step(seed: int, past: int) -> dict[str, np.ndarray]:
        made = np.random.default_rng(seed)
        found = {"input_ids": made.integers(0, 96, (1, 1))}
        for layer in range(TINY.layers):
            for part in ("key", "value"):
                cache = made.standard_normal((1, TINY.kv_heads, past, TINY.head_size), np.float32)
                found[f"past_key_values.{layer}.{part}"] = cache
        return found

    artifact = qgraph.compile(
        tmp_path / "m.onnx",
        output=tmp_path / "o",
        target="cuda",
        precision=precision,
        data=[step(seed, 16) for seed in range(8)],
        settings=settings,
    )
    assert all("nhwc" not in each.candidate for each in artifact.manifest.timings)
    with artifact.open() as session, open_reference(tmp_path / "m.onnx") as reference:
        for past in (16, 16, 16, 17, 18):
            feeds = step(50 + past, past)
            for found in compare(reference.run(feeds), session.run(feeds)):
                assert found.sqnr_db is not None and found.sqnr_db > 8, found


def test_what_the_recipe_decides_is_not_measured(tmp_path: Path) -> None:
    artifact = compiled(
        layers(tmp_path / "m.onnx"), "fp16", settings=["cuda.graph=false", "cuda.tf32=true"]
    )
    engine = artifact.manifest.engine
    assert engine is not None and engine.options["engine"] == {"tf32": True}
    ours = [each.candidate for each in artifact.manifest.timings if "before" not in each.candidate]
    assert ours == ["onnxruntime-cuda fp16"]


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_layers_say_what_ran(precision: str, tmp_path: Path) -> None:
    path = layers(tmp_path / "m.onnx")
    settings = ["weight_only.head=true"] if precision == "int4" else []
    artifact = compiled(path, precision, settings=settings)
    result = CliRunner().invoke(app, ["layers", str(artifact.path), "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    kinds = {each["kind"]: each for each in found["layers"]}
    product = kinds["MatMulNBits" if precision == "int4" else "MatMul"]
    assert product["as_planned"] and product["kernel"] == "CUDA" and product["time_us"] > 0
