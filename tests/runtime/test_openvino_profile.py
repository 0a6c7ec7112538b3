"""Compiled models in OpenVINO's own runtime: which kernels it ran, as the plugin does not show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from realmodels import ROOT, shared

import qgraph
from models.digits.data import load
from qgraph.runtime.openvino import _cpuinfo

# OpenVINO's layers that convolve or multiply by weights; others have names of their own.
PRODUCTS = {
    "Convolution",
    "GroupConvolution",
    "Deconvolution",
    "MatMul",
    "FullyConnected",
    "FullyConnectedCompressed",
    "FullyConnectedQuantized",
    "FullyConnectedQuantizedLegacy",
}
WITH_WEIGHTS = ("Conv", "Gemm", "MatMul")
Feeds = dict[str, np.ndarray[Any, Any]]


def kernels(model: Path, feeds: Feeds) -> dict[str, list[str]]:
    """Run a model once and list the kernels that ran, by type of layer."""
    ov = pytest.importorskip("openvino", reason="the package openvino is not installed")
    if _cpuinfo("vendor_id") != "GenuineIntel":
        pytest.skip("OpenVINO's kernels are looked at on Intel CPUs only")
    # True float32 elsewhere: bf16 must not pass for what was asked for.
    options = {"PERF_COUNT": True, "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.compile_model(str(model), "CPU", options).create_infer_request()
    request.infer(feeds)
    found: dict[str, list[str]] = {}
    for layer in request.profiling_info:
        if layer.status == ov.ProfilingInfo.Status.EXECUTED:
            found.setdefault(layer.node_type, []).append(layer.exec_type)
    return found


def quantized_layers(model: Path) -> int:
    """How many layers of the file have int8 weights, through DequantizeLinear."""
    graph = onnx.load(model).graph
    constants = {tensor.name for tensor in graph.initializer}
    weights = {
        node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    return sum(node.op_type in WITH_WEIGHTS and node.input[1] in weights for node in graph.node)


def check_products_run_in_int8(artifact: qgraph.Artifact, original: Path, feeds: Feeds) -> None:
    found = kernels(artifact.model_path, feeds)
    products = [kernel for kind in PRODUCTS for kernel in found.get(kind, [])]
    wanted = quantized_layers(artifact.model_path)
    assert wanted > 0 and sum(k.endswith(("_I8", "_U8")) for k in products) == wanted, found
    # The profile tells int8 from float32: the original has none.
    plain = kernels(original, feeds)
    assert not any(k.endswith(("I8", "U8")) for kind in PRODUCTS for k in plain.get(kind, []))


@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit", "digits_gru"])
def test_products_of_the_small_models_run_in_int8(name: str, tmp_path: Path) -> None:
    model = ROOT / f"models/digits/{name}.onnx"
    data = {"image": load().train_x[:20]}
    artifact = qgraph.compile(model, output=tmp_path / name, recipe="fast", data=data)
    check_products_run_in_int8(artifact, model, {"image": data["image"][:1]})


def photos(model: Path) -> list[Feeds]:
    with np.load(shared("data", "imagenet_calib200_224_u8.npz")) as data:
        x = data["x"][:8].astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    return [{"input": np.ascontiguousarray(x[i : i + 1])} for i in range(8)]


def sentences(model: Path) -> list[Feeds]:
    with np.load(shared("data", "minilm_sts15_calib.npz")) as data:
        rows = data["a"][:8].astype(np.int64)
    rows = [row[None, row != 0] for row in rows]
    return [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in rows]


def lines(model: Path) -> list[Feeds]:
    with np.load(shared("data", "ocr_lines_calib.npz")) as data:
        images = [x[:, :width] for x, width in zip(data["x"][:8], data["w"][:8], strict=True)]
    name = onnx.load(model).graph.input[0].name
    return [
        {name: np.repeat((image[None, None].astype(np.float32) / 255 - 0.5) / 0.5, 3, 1)}
        for image in images
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("mobilenet_v2", photos),
        ("efficientnet_lite0", photos),
        ("minilm_l6_v2", sentences),
        ("ppocrv6_rec_small", lines),
    ],
)
def test_products_of_real_models_run_in_int8(
    name: str, samples: Callable[[Path], list[Feeds]], tmp_path: Path
) -> None:
    model = shared("models", f"{name}.onnx")
    data = samples(model)
    artifact = qgraph.compile(model, output=tmp_path / name, recipe="fast", data=data)
    check_products_run_in_int8(artifact, model, data[0])
