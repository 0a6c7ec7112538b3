"""A tiny decoder and what quantizes its weights to few bits."""

import numpy as np
from harness import run_reference
from llamas import TINY, random_weights

from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.passes.linear_to_matmul import LinearToMatMul
from qgraph.passes.weight_only.quantize import WeightOnly
from qgraph.pipeline import Pipeline
from qgraph.target import target

SMALL = {"min_elements": 1, "group": 16}


def decoder(**kinds):
    return Graph(build(TINY, random_weights(), **kinds))


def windows(count=12, length=20, seed=0):
    rng = np.random.default_rng(seed)
    return [{"input_ids": rng.integers(0, TINY.vocabulary, (1, length))} for _ in range(count)]


def quantized(graph, data=None, name="cpu", **options):
    context = Context(target=target(name), data=windows() if data is None else data or None)
    passes = [LinearToMatMul(), WeightOnly(**SMALL | options)]
    stages = Pipeline(passes).run(graph, context)
    return stages[-1].report


def logits(graph, feeds, name="logits"):
    return run_reference(onnx_io.to_proto(graph), feeds)[name]


def relative(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())
