"""One step of a decoder with its KV cache, in fp16 and with weights in few bits."""

import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.cuda_weights.timing import Device, bind, median_us, open_session, room, runner
from models.zoo.llama import Config, shapes
from models.zoo.llama_onnx import build
from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.pipeline import Pipeline
from qgraph.target import target

# 30 layers of 135 M parameters in all, and 8 layers as large models have them, of 218 M each. These
# share one layer's weights, which saves building time; in int4 they still are more than the cache
# of 50 MB holds.
MODELS = {
    "135M": (Config(30, 576, 9, 3, 1536, 49152, 512), False),
    "8 layers of 4096": (Config(8, 4096, 32, 8, 14336, 1024, 512), True),
}
TINY = {
    "tiny": (Config(2, 64, 4, 2, 128, 96, 64), False),
    "tiny, shared": (Config(2, 64, 4, 2, 128, 96, 64), True),
}
# A group length of which 576 is a multiple.
OPTIONS = {"weight_only": {"method": "rtn", "scaling": False, "group": 64}}


def write(config: Config, shared: bool, precision: str, path: Path, **options: Any) -> float:
    """Compile a decoder with random weights for target `cuda`; return the seconds it took."""
    start = time.perf_counter()
    graph = _half_caches(Graph(build(config, _weights(config, shared), kv=True)))
    chosen = {"weight_only": OPTIONS["weight_only"] | options}
    cuda = target("cuda")
    passes = [*flow.exact_passes(chosen), *flow.quantizing_passes(precision, chosen, cuda)]
    Pipeline(passes).run(graph, Context(target=cuda))
    onnx_io.save(graph, path)
    del graph
    gc.collect()
    return time.perf_counter() - start


def step(
    device: Device, path: Path, config: Config, batch: int, past: int, *, graphs: bool
) -> dict[str, float]:
    """Return the time of a step in microseconds, with `graphs` as a CUDA graph too.

    Args:
        device: Where.
        path: From `write`.
        config: The decoder's sizes.
        batch: Sequences.
        past: Tokens in each one's cache.
        graphs: Whether to record CUDA graphs.
    """
    lengths = {"batch": batch, "seq": 1, "past": past}
    session = open_session(path, device, optimise=True, graphs=graphs, lengths=lengths)
    rng = np.random.default_rng(0)
    cache = (batch, config.kv_heads, past, config.head_size)
    feeds = {
        each.name: rng.integers(0, config.vocabulary, (batch, 1))
        if each.name == "input_ids"
        else rng.standard_normal(cache).astype(np.float16)
        for each in session.get_inputs()
    }
    grown = (batch, config.kv_heads, past + 1, config.head_size)
    outputs = {
        each.name: room(device, (batch, 1, config.vocabulary), np.float32)
        if each.name == "logits"
        else room(device, grown, np.float16)
        for each in session.get_outputs()
    }
    binding = bind(session, device, feeds, outputs)
    found = {"plain_us": round(median_us(runner(session, binding, graph=None), device), 1)}
    if graphs:
        found["graph_us"] = round(median_us(runner(session, binding, graph=1), device), 1)
    return found


def _weights(config: Config, shared: bool) -> dict[str, np.ndarray]:
    """Return weights by name, cut from one strip of random numbers at different places."""
    strip = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32) * 0.02
    arrays: dict[str, np.ndarray] = {}
    for index, (name, shape) in enumerate(shapes(config).items()):
        first = name.replace(name.split(".")[1], "0", 1) if name.startswith("layers.") else name
        if shared and first in arrays:
            arrays[name] = arrays[first]
        elif "norm" in name:
            arrays[name] = np.full(shape, 1 + index / 1024, np.float32)
        else:
            arrays[name] = np.resize(np.roll(strip, 997 * index), shape)
    return arrays


def _half_caches(graph: Graph) -> Graph:
    """Let the caches come and go in float16; constants that are one array become one."""
    first = next(iter(graph.main))
    for value in [v for v in graph.inputs if v.dtype == ir.DataType.FLOAT]:
        uses = [(use.node, use.idx) for use in value.uses()]
        cast = graph.insert("Cast", [value], before=first, attributes={"to": 1}, like=value)
        value.type = ir.TensorType(ir.DataType.FLOAT16)
        for node, index in uses:
            graph.set_input(node, index, cast.outputs[0])
    for index, value in enumerate(graph.outputs):
        producer = value.producer()
        if producer is None or value.name == "logits":
            continue
        name, value.name = value.name, f"{value.name}.float"
        cast = graph.insert("Cast", [value], after=producer, attributes={"to": 10}, like=value)
        made = cast.outputs[0]
        made.name, made.type = name, ir.TensorType(ir.DataType.FLOAT16)
        graph.main.outputs[index] = made
    seen: dict[int, Any] = {}
    for value in graph.initializers:
        array = graph.array(value)
        same = seen.setdefault(id(array), value)
        if same is not value:
            graph.replace(value, same)
    graph.drop_unread_initializers()
    return graph
