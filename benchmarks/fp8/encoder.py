"""An encoder of BERT-large's shape, in fp16 and in fp8 as qgraph compiles it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.cuda_weights.timing import Device, bind, median_us, open_session, room, runner
from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.pipeline import Pipeline, Stage
from qgraph.target import target

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Config:
    """Sizes.

    Attributes:
        layers: Blocks; they share one block's weights, which saves building time.
        width: Of the stream.
        heads: Of attention.
        hidden: Of the second product's input.
    """

    layers: int
    width: int
    heads: int
    hidden: int


LARGE = Config(24, 1024, 16, 4096)
TINY = Config(2, 64, 4, 128)
# How q, k and v are computed and attention with them: three products, or one with all columns side by
# side; both by onnxruntime's fused kernel. `plain` is in operators of the ONNX standard.
FORMS = ("separate", "packed", "plain")
# Which products are in fp8, by those that stay out of it.
CHOICES: dict[str, tuple[str, ...]] = {"all": (), "hidden": ("*.q*", "*.k", "*.v", "*.out")}


def build(config: Config, form: str) -> onnx.ModelProto:
    """Return the float32 model: hidden states [batch, length, width] to the same."""
    rng = np.random.default_rng(0)
    arrays = _weights(config, form, rng)
    nodes: list[onnx.NodeProto] = []
    x = "x"
    for index in range(config.layers):
        last = index == config.layers - 1
        x = _block(nodes, config, form, index, x, "y" if last else f"L{index}.y")
    shape = ["batch", "length", config.width]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
        # ONNX does not know what onnxruntime's operators give.
        value_info=[
            helper.make_tensor_value_info(f"L{index}.context", TensorProto.FLOAT, shape)
            for index in range(config.layers)
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def inputs(config: Config, batch: int, length: int, seed: int = 0) -> Feeds:
    """Return random hidden states."""
    strip = np.random.default_rng(seed).standard_normal(1 << 20).astype(np.float32)
    return {"x": np.resize(strip, (batch, length, config.width))}


def write(
    proto: onnx.ModelProto,
    precision: str,
    path: Path,
    device: Device,
    data: Sequence[Feeds],
    **options: object,
) -> tuple[float, int]:
    """Compile for target `cuda`; return the seconds it took and how many products are in fp8.

    Options are those of pass `fp8`; measured times decide nothing.

    Without a GPU the kernel's place is held by what it computes, in plain operators.
    """
    start = time.perf_counter()
    chosen = {"fp8": {"costs": False, "head": True, "min_elements": 1, **options}}
    cuda = target("cuda")
    context = Context(target=cuda, data=data)
    graph = onnx_io.load(proto)
    passes = [*flow.exact_passes(chosen), *flow.quantizing_passes(precision, chosen, cuda)]
    stages: list[Stage] = Pipeline(passes).run(graph, context)
    if device.name == "cuda":
        kernels = flow.kernel_passes(precision, chosen, cuda)
        Pipeline(kernels, given=graph.facts.present()).run(graph, context)
    onnx_io.save(graph, path)
    count = sum(stage.report.changed for stage in stages if stage.name == "fp8")
    return time.perf_counter() - start, count


def run_once(path: Path | bytes, device: Device, feeds: Feeds) -> np.ndarray:
    """Return the output."""
    session = open_session(path, device, optimise=True, graphs=False)
    result: np.ndarray = session.run(None, feeds)[0]
    return result


def run_time(path: Path, device: Device, feeds: Feeds, *, graphs: bool) -> float:
    """Return the microseconds of a run, inputs and outputs in the device's memory."""
    batch, length, _ = feeds["x"].shape
    lengths = {"batch": batch, "length": length}
    session = open_session(path, device, optimise=True, graphs=graphs, lengths=lengths)
    outputs = {"y": room(device, feeds["x"].shape, np.float32)}
    binding = bind(session, device, feeds, outputs)
    return round(median_us(runner(session, binding, graph=1 if graphs else None), device), 1)


def products(config: Config, form: str) -> dict[str, tuple[int, int]]:
    """Return the shapes [K, N] of a block's products, by the end of their nodes' names."""
    width, hidden = config.width, config.hidden
    heads = {"qkv": (width, 3 * width)} if form == "packed" else {}
    if not heads:
        heads = {name: (width, width) for name in "qkv"}
    return {**heads, "out": (width, width), "up": (width, hidden), "down": (hidden, width)}


def _weights(config: Config, form: str, rng: np.random.Generator) -> Feeds:
    arrays: Feeds = {}
    for name, (depth, width) in products(config, form).items():
        arrays[f"{name}.w"] = rng.standard_normal((depth, width), np.float32) * depth**-0.5
        arrays[f"{name}.b"] = rng.standard_normal(width, np.float32) * np.float32(0.1)
    for norm in ("norm1", "norm2"):
        arrays[f"{norm}.g"] = 1 + rng.standard_normal(config.width, np.float32) * np.float32(0.1)
        arrays[f"{norm}.b"] = rng.standard_normal(config.width, np.float32) * np.float32(0.1)
    if form == "separate":
        arrays["qkv.b"] = np.concatenate([arrays.pop(f"{name}.b") for name in "qkv"])
    head = config.width // config.heads
    if form == "packed":
        arrays["packed"] = np.array([0, 0, config.heads, 3, head])
    if form == "plain":
        arrays["heads"] = np.array([0, 0, config.heads, head])
        arrays["joined"] = np.array([0, 0, config.width])
        arrays["root"] = np.array(head**-0.5, np.float32)
    return arrays


def _block(
    nodes: list[onnx.NodeProto], config: Config, form: str, index: int, x: str, result: str
) -> str:
    """Add a block; return its result's name."""
    at = f"L{index}."

    def add(op: str, *given: str, out: str, domain: str = "", **attributes: object) -> str:
        name = result if out == "y" else f"{at}{out}"
        node = helper.make_node(op, given, [name], f"{at}{out}", domain=domain, **attributes)
        nodes.append(node)
        return name

    def linear(given: str, name: str) -> str:
        return add("Add", add("MatMul", given, f"{name}.w", out=name), f"{name}.b", out=f"{name}_b")

    if form == "packed":
        five = add("Reshape", linear(x, "qkv"), "packed", out="five")
        fused, operands = "MultiHeadAttention", [five]
    elif form == "separate":
        fused = "MultiHeadAttention"
        operands = [add("MatMul", x, f"{n}.w", out=n) for n in "qkv"] + ["qkv.b"]
    else:
        fused, operands = "", [linear(x, name) for name in "qkv"]
    if fused:
        context = add(
            fused, *operands, out="context", domain="com.microsoft", num_heads=config.heads
        )
    else:
        context = _attention(add, *operands)
    first = add("Add", linear(context, "out"), x, out="sum1")
    norm = add("LayerNormalization", first, "norm1.g", "norm1.b", out="norm1")
    hidden = add("Gelu", linear(norm, "up"), out="gelu")
    second = add("Add", linear(hidden, "down"), norm, out="sum2")
    return add("LayerNormalization", second, "norm2.g", "norm2.b", out="y")


def _attention(add, q: str, k: str, v: str) -> str:  # type: ignore[no-untyped-def]
    turned = {}
    for name, value, order in (
        ("q", q, [0, 2, 1, 3]),
        ("k", k, [0, 2, 3, 1]),
        ("v", v, [0, 2, 1, 3]),
    ):
        split = add("Reshape", value, "heads", out=f"{name}_heads")
        turned[name] = add("Transpose", split, out=f"{name}_turned", perm=order)
    scores = add("MatMul", turned["q"], turned["k"], out="scores")
    weights = add("Softmax", add("Mul", scores, "root", out="scaled"), out="weights", axis=-1)
    context = add("MatMul", weights, turned["v"], out="mixed")
    back = add("Transpose", context, out="back", perm=[0, 2, 1, 3])
    return str(add("Reshape", back, "joined", out="context"))
