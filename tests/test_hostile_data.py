"""Calibration data that real life brings: a sane scale, or one clear line."""

from typing import Any

import numpy as np
import onnx
import pytest
from harness import model, run_reference

from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.data import open_data
from qgraph.errors import DataError
from qgraph.graph import Graph
from qgraph.passes.observers import observers
from qgraph.pipeline import Pipeline
from qgraph.recipe import load_recipe
from qgraph.target import target

NET = """
    <ir_version: 10, opset_import: ["": 21]>
    net (float[N, 3, 8, 8] image) => (float[N, 5] scores) {
        a = Conv<pads = [1, 1, 1, 1]>(image, w1, b1)
        r = Clip(a, zero, six)
        d = Conv<group = 8, pads = [1, 1, 1, 1]>(r, w2, b2)
        s = Relu(d)
        e = Conv(s, w3, b3)
        p = GlobalAveragePool(e)
        f = Flatten(p)
        scores = Gemm(f, w4, b4)
    }
"""
SHAPE = (3, 8, 8)


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    return {
        "w1": rand(8, 3, 3, 3),
        "b1": rand(8),
        "w2": rand(8, 1, 3, 3, seed=1),
        "b2": rand(8, seed=1),
        "w3": rand(6, 8, 1, 1, seed=2),
        "b3": rand(6, seed=2),
        "w4": rand(6, 5, seed=3),
        "b4": rand(5, seed=3),
        "zero": np.float32(0),
        "six": np.float32(6),
    }


def images(kind: str) -> np.ndarray:
    found = rand(16, *SHAPE, seed=7)
    if kind == "constant":
        found[:] = 3.5
    elif kind == "zeros":
        found[:] = 0
    elif kind == "negative zeros":
        found[:] = -0.0
    elif kind == "denormals":
        found *= 1e-42
    elif kind == "tiny":
        found *= 1e-30
    elif kind == "huge":
        found *= 1e30
    elif kind == "one outlier":
        found[3, 1, 2, 2] = 1e30
    elif kind == "dead channel":
        found[:, 1] = 0
    elif kind == "one-sided":
        found = np.abs(found) + 100
    elif kind == "one image":
        found = found[:1]
    return found


KINDS = [
    "constant",
    "zeros",
    "negative zeros",
    "denormals",
    "tiny",
    "huge",
    "one outlier",
    "dead channel",
    "one-sided",
    "one image",
]


def quantize(
    proto: onnx.ModelProto, data: np.ndarray, recipe: str, options: dict[str, Any]
) -> Graph:
    graph = onnx_io.load(proto)
    chosen = {**load_recipe(recipe).passes}
    chosen["calibrate"] = {**chosen.get("calibrate", {}), **options}
    dataset = open_data({"image": data}, graph.signature())
    context = Context(target=target("cpu"), data=dataset)
    Pipeline(flow.exact_passes(chosen)).run(graph, context)
    passes = flow.quantizing_passes("int8", chosen)
    Pipeline(passes, given=graph.facts.present()).run(graph, context)
    return graph


def assert_sane(graph: Graph, proto: onnx.ModelProto, data: np.ndarray) -> None:
    scales = [
        graph.array(node.inputs[1]) for node in graph.nodes("QuantizeLinear", "DequantizeLinear")
    ]
    assert scales
    for scale in scales:
        assert scale is not None and np.isfinite(scale).all() and (scale > 0).all()
        # Division by a denormal is infinite in engines that flush to zero.
        assert (scale >= np.finfo(np.float32).tiny).all()
    quantized = onnx_io.to_proto(graph)
    for batch in (data[:2], rand(2, *SHAPE, seed=9)):
        assert np.isfinite(run_reference(quantized, {"image": batch})["scores"]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", ["default", "fast"])
def test_every_recipe_gives_sane_scales(recipe, kind):
    proto, data = model(NET, weights()), images(kind)
    assert_sane(quantize(proto, data, recipe, {}), proto, data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("observer", [*observers(), "auto"])
def test_every_observer_gives_sane_scales(observer, kind):
    proto, data = model(NET, weights()), images(kind)
    graph = quantize(proto, data, "fast", {"observer": observer})
    assert_sane(graph, proto, data)


@pytest.mark.parametrize("kind", ["constant", "tiny", "huge", "dead channel", "one-sided"])
def test_harmless_oddities_cost_no_accuracy(kind):
    proto, data = model(NET, weights()), images(kind)
    graph = quantize(proto, data, "default", {})
    exact = run_reference(proto, {"image": data})["scores"]
    error = run_reference(onnx_io.to_proto(graph), {"image": data})["scores"] - exact
    # Plain noise has 26 dB; 20 allow one bit less.
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(exact)


@pytest.mark.parametrize("layer", ["w1", "w2", "w3", "w4"])
def test_dead_output_channels(layer):
    dead = weights()
    dead[layer][..., 0] = 0
    dead[layer][0] = 0
    proto, data = model(NET, dead), images("plain")
    assert_sane(quantize(proto, data, "default", {}), proto, data)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("recipe", ["default", "fast"])
def test_infinity_and_nan_are_refused_by_name(recipe, bad):
    data = images("plain")
    data[5, 0, 1, 1] = bad
    with pytest.raises(DataError, match="image"):
        quantize(model(NET, weights()), data, recipe, {})


def test_overflow_inside_the_model_is_refused_by_name():
    large = weights()
    large["w1"] *= np.float32(1e30)
    with pytest.raises(DataError, match="sample 0 makes '[ar]' NaN or infinite"):
        quantize(model(NET, large), images("plain") * np.float32(1e30), "default", {})


def test_an_empty_batch_is_refused():
    with pytest.raises(DataError):
        quantize(model(NET, weights()), images("plain")[:0], "default", {})
