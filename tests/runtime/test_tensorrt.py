"""Engines that are really built, with TensorRT-RTX or TensorRT where one of them is installed."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from harness import model
from llamas import TINY, random_weights
from onnx import helper
from realmodels import shared

import qgraph
from models.digits.data import load as load_digits
from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.errors import EngineError, ModelError
from qgraph.flow import exact_passes, quantizing_passes
from qgraph.graph import Graph
from qgraph.pipeline import Pipeline
from qgraph.runtime import backend
from qgraph.runtime.backend import Backend
from qgraph.runtime.builder import Builder, BuildRequest
from qgraph.runtime.tensorrt import library as libraries
from qgraph.runtime.tensorrt.backend import TensorRt
from qgraph.runtime.tensorrt.device import device
from qgraph.target import target

ROOT = Path(__file__).resolve().parents[2]
HERE = any(importlib.util.find_spec(name) for name in libraries.MODULES)
needs_builder = pytest.mark.skipif(
    not HERE, reason="neither tensorrt_rtx nor tensorrt is installed (tensorrt-rtx-cu13 on PyPI)"
)


def save(folder, text, weights=None):
    path = folder / "m.onnx"
    onnx.save(model(text, weights), path)
    return path


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_it_is_a_backend_that_builds():
    engine = backend("tensorrt")
    assert isinstance(engine, Backend) and isinstance(engine, Builder)


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(libraries, "MODULES", {"no_such_module": "TensorRT"})
    engine = TensorRt()
    for reason in (engine.unavailable(), engine.cannot_build()):
        assert "no_such_module" in reason and "pip install 'qgraph[tensorrt]'" in reason
    for use in (lambda: engine.open(b""), lambda: engine.build(tmp_path)):
        with pytest.raises(EngineError, match="can't be imported"):
            use()


@needs_builder
@pytest.mark.skipif(device() is not None, reason="there is a GPU")
def test_without_a_gpu_it_builds_and_does_not_run(tmp_path):
    engine = TensorRt()
    assert engine.cannot_build() is None
    assert "no NVIDIA GPU is visible" in engine.unavailable()
    path = save(tmp_path, "g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    for given in (path, path.read_bytes()):
        with pytest.raises(EngineError, match="no NVIDIA GPU is visible"):
            engine.open(given)


@needs_builder
def test_dynamic_axes_are_built_for_the_given_shape(tmp_path):
    path = save(tmp_path, "g (float[N,M] x) => (float[N,M] y) { y = Relu(x) }")
    engine = TensorRt()
    built = engine.build(path, BuildRequest({"x": (2, 3)}))
    assert len(built.engine) > 100 and built.layers >= 1 and built.seconds > 0
    assert "built an engine of" in str(built) and built.builder.split()[0].startswith("TensorRT")
    assert built.record["profiles"] == [{"x": [[2, 3]] * 3}]
    for shapes in ({}, {"x": (2,)}, {"x": (2, -1)}):
        with pytest.raises(
            EngineError, match=r"input 'x' \[\?, \?\] can't be .*; give one for every"
        ):
            engine.build(path, BuildRequest(shapes))


@needs_builder
def test_a_refused_node_is_named(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 21, "my" : 1]>
    g (float[3,4] x) => (float[3,4] y) { [strange] y = my.Strange(x) }"""
    with pytest.raises(EngineError) as caught:
        TensorRt().build(save(tmp_path, text))
    assert "refuses the model" in str(caught.value) and "Strange 'strange'" in str(caught.value)
    assert "\n" not in str(caught.value) and "--exclude" in str(caught.value)


@needs_builder
def test_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        TensorRt().build(tmp_path / "none.onnx")


@needs_builder
@pytest.mark.parametrize("fault", ["int32 bias", "zero point"])
def test_the_builder_refuses_what_the_target_avoids(fault, tmp_path):
    # The reasons for this target's rules hold for the builder that is installed.
    bias = "bq = DequantizeLinear(b, bs)  y = Conv(d, w, bq)"
    text = f"""g (float[1,16,8,8] x) => (float[1,16,8,8] y) {{
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
        {bias if fault == "int32 bias" else "y = Conv(d, w)"}
    }}"""
    weights = {
        "s": np.float32(0.02),
        "z": np.int8(3 if fault == "zero point" else 0),
        "w": rand(16, 16, 1, 1),
    }
    if fault == "int32 bias":
        weights |= {"b": np.arange(16, dtype=np.int32), "bs": np.float32(0.001)}
    with pytest.raises(EngineError, match="refuses the model"):
        TensorRt().build(save(tmp_path, text, weights))


BLOCKS = """<ir_version: 10, opset_import: ["" : 21]>
g (float[2,K] x) => (float[2,32] y) {
    w = DequantizeLinear <axis = 0, block_size = BLOCK> (codes, scale)  y = MatMul(x, w)
}"""


def in_blocks(folder, rows, block):
    codes = np.random.default_rng(0).integers(-8, 8, (rows, 32)).astype(ml_dtypes.int4)
    scale = np.full((-(-rows // block), 32), 0.1, np.float32)
    text = BLOCKS.replace("K", str(rows), 1).replace("BLOCK", str(block))
    return save(folder, text, {"codes": codes, "scale": scale})


@needs_builder
@pytest.mark.parametrize("block", [64, 128])
def test_int4_in_whole_blocks_builds(block, tmp_path):
    assert TensorRt().build(in_blocks(tmp_path, 256, block)).layers >= 1


@needs_builder
@pytest.mark.parametrize(("rows", "block"), [(576, 128), (288, 64)])
def test_the_builder_refuses_a_shorter_last_block(rows, block, tmp_path):
    # Nor does it take the model's word for the length: 192 rows with two scales build, as blocks
    # of 96. That is why the target wants whole blocks.
    with pytest.raises(EngineError, match="must divide into whole blocks"):
        TensorRt().build(in_blocks(tmp_path, rows, block))


# -- everything that is compiled for the target builds ---------------------------------------------


def compiled(path, data, output, precision="int8", exclude=()):
    """Compile, and check that the engine was built of what was written."""
    artifact = qgraph.compile(
        path,
        target="tensorrt",
        precision=precision,
        recipe="fast",
        settings=["correct_bias.enabled=false"],
        data=data,
        exclude=exclude,
        output=output,
    )
    manifest = artifact.manifest
    assert manifest.plan is not None and (output / "engine.plan").is_file()
    assert manifest.engine is None and "built an engine of" in manifest.not_timed
    assert manifest.accuracy is not None and manifest.accuracy.passed
    return artifact


MIXED = "mixed"


@needs_builder
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4", MIXED])
@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit", "digits_gru"])
def test_digits_networks_build(name, precision, tmp_path):
    data = {"image": load_digits().train_x[:20]}
    mixed = precision == MIXED
    artifact = compiled(
        ROOT / "models" / "digits" / f"{name}.onnx",
        data,
        tmp_path / "out",
        "int8" if mixed else precision,
        exclude=["*attn*", "*[1357]*"] if mixed else (),
    )
    quantized = [n.op_type for n in onnx.load(artifact.model_path).graph.node]
    # The GRU's own operators have no integer form, and its last layer is too narrow.
    integers = precision in ("int8", MIXED) and name != "digits_gru"
    assert ("QuantizeLinear" in quantized) == integers
    if mixed and integers:
        nodes = artifact.manifest.nodes
        assert nodes["int8"] and nodes["float"] > 3


IMAGES = {"input": np.random.default_rng(0).standard_normal((8, 3, 224, 224)).astype(np.float32)}
LINES = {"x": np.random.default_rng(0).standard_normal((6, 3, 48, 160)).astype(np.float32)}
REAL = {
    "mobilenet_v2": IMAGES,
    "efficientnet_lite0": IMAGES,
    "ppocrv6_rec_small": LINES,
    "minilm_l6_v2": None,
}


def sentences():
    """Real ones: random tokens make ranges that no text has."""
    with np.load(shared("data", "minilm_sts15_calib.npz")) as file:
        ids = next(iter(file.values()))[:16, :32].astype(np.int64)
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}


SHAPES = {
    "mobilenet_v2": {"input": (1, 3, 224, 224)},
    "efficientnet_lite0": {"input": (1, 3, 224, 224)},
    "ppocrv6_rec_small": {"x": (1, 3, 48, 160)},
    "minilm_l6_v2": {"input_ids": (1, 32), "attention_mask": (1, 32)},
}


@needs_builder
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", SHAPES)
def test_real_models_build_in_float(name, precision, tmp_path):
    graph = onnx_io.load(shared("models", f"{name}.onnx"))
    passes = exact_passes({}, target=target("tensorrt"))
    Pipeline([*passes, *quantizing_passes(precision, {}, target("tensorrt"))]).run(graph)
    onnx_io.save(graph, tmp_path / "m.onnx")
    built = TensorRt().build(tmp_path / "m.onnx", BuildRequest(SHAPES[name]))
    assert built.record["bytes"] > 1_000_000


@needs_builder
@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_models_build(name, tmp_path):
    data = REAL[name] or sentences()
    artifact = compiled(shared("models", f"{name}.onnx"), data, tmp_path / "out")
    assert artifact.manifest.nodes["int8"] > 40


@needs_builder
@pytest.mark.parametrize(
    ("width", "group", "blocks"),
    [(128, 128, {128}), (128, 64, {64}), (192, 128, {64, 128})],
)
def test_decoders_in_four_bits_build(width, group, blocks, tmp_path):
    config = replace(TINY, layers=1, width=width, hidden=256)
    path = tmp_path / "decoder.onnx"
    onnx_io.save(Graph(build(config, random_weights(config))), path)
    windows = np.random.default_rng(0).integers(0, config.vocabulary, (8, 12))
    artifact = qgraph.compile(
        path,
        target="tensorrt",
        precision="int4",
        settings=[f"weight_only.group={group}"],
        data={"input_ids": windows},
        output=tmp_path / "out",
    )
    assert "built an engine of" in artifact.manifest.not_timed
    assert artifact.manifest.nodes["int4"] == 7
    dequantized = [
        helper.get_node_attr_value(node, "block_size")
        for node in onnx.load(artifact.model_path).graph.node
        if node.op_type == "DequantizeLinear"
    ]
    assert len(dequantized) == 7 and set(dequantized) == blocks
