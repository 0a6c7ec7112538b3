"""The models, their plain fp16 versions, and what they are fed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.cuda_models import mobilenet
from models.zoo import resnet50
from models.zoo.llama import Config, shapes
from models.zoo.llama_onnx import build as build_decoder
from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.pipeline import Pipeline
from qgraph.target import target

DECODER = Config(30, 576, 9, 3, 1536, 49152, 512)
TINY = Config(2, 64, 4, 2, 128, 96, 64)
PAST, TINY_PAST = 128, 16


@dataclass(frozen=True)
class Workload:
    """A model.

    Attributes:
        name: For tables.
        layouts: Whether it has operators that run in one layout or another.
        answer: The output that is compared.
    """

    name: str
    layouts: bool
    answer: str


WORKLOADS = {
    "resnet50": Workload("ResNet-50", True, "logits"),
    "mobilenet_v2": Workload("MobileNetV2", True, "logits"),
    "decoder": Workload("135M decoder, one step", False, "logits"),
}


def write(name: str, folder: Path, *, quick: bool) -> None:
    """Write `fp32.onnx` and `fp16.onnx`, which is the same with float16 inside and no fusions."""
    path = folder / "fp32.onnx"
    if name == "decoder":
        config = TINY if quick else DECODER
        onnx_io.save(Graph(build_decoder(config, _weights(config), kv=True)), path)
    else:
        build = resnet50.build if name == "resnet50" else mobilenet.build
        onnx.save(build(size=64 if quick else 224), path)
    graph = onnx_io.load(path)
    passes = [*flow.build(["normalize", "infer_shapes"], {}), *flow.quantizing_passes("fp16", {})]
    Pipeline(passes).run(graph, Context(target=target("cuda")))
    onnx_io.save(graph, folder / "fp16.onnx")


def feeds(name: str, batch: int, *, quick: bool) -> dict[str, np.ndarray]:
    """The first `batch` rows of what is always the same."""
    rng = np.random.default_rng(0)
    if name != "decoder":
        size = 64 if quick else 224
        rows = [rng.standard_normal((1, 3, size, size), np.float32) for _ in range(batch)]
        return {"input": np.concatenate(rows)}
    config, past = (TINY, TINY_PAST) if quick else (DECODER, PAST)
    found = {"input_ids": np.arange(batch, dtype=np.int64)[:, None] * 7 % config.vocabulary}
    shape = (config.kv_heads, past, config.head_size)
    for layer in range(config.layers):
        for part in ("key", "value"):
            first = rng.standard_normal(shape, np.float32)
            rolled = [np.roll(first, row, 1) for row in range(batch)]
            found[f"past_key_values.{layer}.{part}"] = np.stack(rolled)
    return found


def sizes(name: str, batch: int, *, quick: bool) -> dict[str, int]:
    """Lengths of the dynamic axes."""
    if name != "decoder":
        return {"n": batch}
    return {"batch": batch, "seq": 1, "past": TINY_PAST if quick else PAST}


def _weights(config: Config) -> dict[str, np.ndarray]:
    """Weights cut from one strip of random numbers at different places."""
    strip = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32) * 0.02
    return {
        name: np.full(shape, 1 + index / 1024, np.float32)
        if "norm" in name
        else np.resize(np.roll(strip, 997 * index), shape)
        for index, (name, shape) in enumerate(shapes(config).items())
    }
