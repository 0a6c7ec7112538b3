"""What onnxruntime's own operators win over ONNX's: decoders with and without cache, an encoder.

    python -m benchmarks.contrib [--provider cuda] [--output FILE.json] [--small]

On the CPU every model is float32, with `cuda` it is compiled for target `cuda` in fp16, once as
the target says and once with no contributed operators. Weights are random. Results of both forms
are compared with the float32 model first; where one is off, the exit status is 1. Then both run in
turn, inputs and outputs in the device's memory; the table has medians.
"""

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from benchmarks.cuda_weights.timing import Device, bind, median_us, open_session, runner
from models.zoo.llama import Config, shapes
from models.zoo.llama_onnx import build
from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.passes.contrib.lowering import lower
from qgraph.pipeline import Pipeline
from qgraph.target import target
from qgraph.targets.contrib import ONNXRUNTIME_CPU

DECODER = Config(30, 576, 9, 3, 1536, 49152, 2048)
SMALL_DECODER = Config(2, 64, 4, 2, 128, 96, 64)
# Largest error of the outputs, relative to their largest number.
LIMITS = {"cpu": 1e-4, "cuda": 3e-2}
FORMS = ("ONNX", "contributed")
ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """One model at one shape.

    Attributes:
        model: Key of `models`.
        what: For the table.
        lengths: By dynamic axis.
    """

    model: str
    what: str
    lengths: Mapping[str, int]


def decoder(config: Config, kv: bool) -> Graph:
    """Return a decoder with random weights."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in shapes(config).items():
        if "norm" in name:
            weights[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            array = rng.standard_normal(shape, np.float32)
            weights[name] = array / np.float32(np.sqrt(shape[0] if name != "embed" else 1))
    return Graph(build(config, weights, kv=kv))


def encoder(layers: int, width: int, heads: int) -> Graph:
    """Return an encoder as BERT is: float x [batch, seq, width], int64 mask [batch, seq]."""
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {
        "split": np.array([0, 0, heads, width // heads]),
        "merge": np.array([0, 0, width]),
        "axes": np.array([1, 2]),
        "one": np.float32(1),
        "low": np.float32(-10000),
        "root": np.float32(np.sqrt(width // heads)),
    }
    lines = ["f = Cast<to=1>(mask)", "u = Unsqueeze(f, axes)", "v = Sub(one, u)"]
    lines.append("hidden = Mul(v, low)")
    x = "x"

    def linear(source: str, to: str, rows: int, columns: int) -> None:
        weight = rng.standard_normal((rows, columns), np.float32)
        constants[f"{to}w"] = weight / np.float32(np.sqrt(rows))
        constants[f"{to}b"] = 0.1 * rng.standard_normal(columns, np.float32)
        lines.extend([f"{to}m = MatMul({source}, {to}w)", f"{to} = Add({to}m, {to}b)"])

    def normalized(source: str, other: str, to: str) -> None:
        constants[f"{to}s"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
        constants[f"{to}c"] = 0.1 * rng.standard_normal(width, np.float32)
        lines.append(f"{to}a = Add({source}, {other})")
        lines.append(f"{to} = LayerNormalization<axis=-1>({to}a, {to}s, {to}c)")

    for n in range(layers):
        p = f"l{n}_"
        for part in "qkv":
            linear(x, f"{p}{part}", width, width)
            lines.append(f"{p}{part}r = Reshape({p}{part}, split)")
            perm = "0,2,3,1" if part == "k" else "0,2,1,3"
            lines.append(f"{p}{part}h = Transpose<perm=[{perm}]>({p}{part}r)")
        lines += [
            f"{p}d = MatMul({p}qh, {p}kh)",
            f"{p}e = Div({p}d, root)",
            f"{p}g = Add({p}e, hidden)",
            f"{p}p = Softmax<axis=-1>({p}g)",
            f"{p}t = MatMul({p}p, {p}vh)",
            f"{p}j = Transpose<perm=[0,2,1,3]>({p}t)",
            f"{p}i = Reshape({p}j, merge)",
        ]
        linear(f"{p}i", f"{p}o", width, width)
        normalized(f"{p}o", x, f"{p}n")
        linear(f"{p}n", f"{p}h", width, 4 * width)
        lines.append(f"{p}u = Gelu({p}h)")
        linear(f"{p}u", f"{p}y", 4 * width, width)
        normalized(f"{p}y", f"{p}n", f"{p}z")
        x = f"{p}z"
    lines.append(f"y = Identity({x})")
    entry = f"float[batch,seq,{width}] x, int64[batch,seq] mask"
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    body = "\n".join(lines)
    proto = onnx.parser.parse_model(
        f"{head}\ng ({entry}) => (float[batch,seq,{width}] y) {{ {body} }}"
    )
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return Graph(ir.from_proto(proto))


def write(graph: Graph, form: str, provider: str, path: Path) -> dict[str, int]:
    """Compile a model in one form; return how many operators onnxruntime adds to ONNX's."""
    Pipeline(flow.exact_passes({})).run(graph)
    if provider == "cuda":
        cuda = target("cuda")
        chosen = cuda if form == "contributed" else replace(cuda, contributed=None)
        passes = flow.quantizing_passes("fp16", {}, chosen)
        given = graph.facts.present()
        Pipeline(passes, given=given).run(graph, Context(target=cuda))
    elif form == "contributed":
        lower(graph, ONNXRUNTIME_CPU)
    onnx_io.save(graph, path)
    found: dict[str, int] = {}
    for node in graph.nodes():
        if node.domain == "com.microsoft":
            found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def feeds_of(session: ort.InferenceSession, lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return random inputs of a size."""
    rng = np.random.default_rng(1)
    found: dict[str, np.ndarray] = {}
    for each in session.get_inputs():
        shape = [lengths[d] if isinstance(d, str) else d for d in each.shape]
        if each.name == "mask":
            found[each.name] = np.ones(shape, np.int64)
            found[each.name][0, shape[1] - shape[1] // 4 :] = 0
        elif "int" in each.type:
            found[each.name] = rng.integers(0, 90, shape)
        else:
            found[each.name] = rng.standard_normal(shape, np.float32)
    return found


def measured(case: Case, paths: Mapping[str, Path], plain: Path, device: Device) -> dict[str, Any]:
    """Check one case, then time it in both forms."""
    reference = open_session(plain, Device("cpu"), optimise=True)
    feeds = feeds_of(reference, case.lengths)
    wanted = reference.run(None, feeds)
    del reference
    row: dict[str, Any] = {"model": case.model, "what": case.what, **case.lengths}
    runs = {}
    for form, path in paths.items():
        session = open_session(path, device, optimise=True, graphs=False)
        got = session.run(None, feeds)
        row[f"{form}_error"] = max(
            float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, wanted, strict=True)
        )
        outputs = {
            each.name: ort.OrtValue.ortvalue_from_shape_and_type(
                list(array.shape), array.dtype, device.name, 0
            )
            for each, array in zip(session.get_outputs(), got, strict=True)
        }
        runs[form] = runner(session, bind(session, device, feeds, outputs), graph=None)
    times: dict[str, list[float]] = {form: [] for form in runs}
    for _ in range(ROUNDS):
        for form, run in runs.items():
            times[form].append(median_us(run, device))
    row.update({f"{form}_us": round(min(each), 1) for form, each in times.items()})
    row["ratio"] = round(row["contributed_us"] / row["ONNX_us"], 3)
    return row


def cases(small: bool, provider: str) -> list[Case]:
    """Return what is measured."""
    if small:
        return [
            Case("decoder", "step", {"batch": 1, "seq": 1, "past": 20}),
            Case("decoder without cache", "window", {"batch": 1, "seq": 32}),
            Case("encoder", "sentences", {"batch": 2, "seq": 16}),
        ]
    found = [
        Case("decoder", "step", {"batch": 1, "seq": 1, "past": 256}),
        Case("decoder", "step", {"batch": 1, "seq": 1, "past": 1024}),
        Case("decoder", "prefill", {"batch": 1, "seq": 512, "past": 0}),
        Case("decoder without cache", "window", {"batch": 1, "seq": 512}),
        Case("encoder", "sentences", {"batch": 1, "seq": 128}),
    ]
    if provider == "cuda":
        found += [
            Case("decoder", "step", {"batch": 32, "seq": 1, "past": 512}),
            Case("decoder without cache", "windows", {"batch": 8, "seq": 512}),
            Case("encoder", "sentences", {"batch": 32, "seq": 128}),
            Case("encoder", "sentences", {"batch": 16, "seq": 512}),
        ]
    return found


def main() -> int:
    """Measure every case, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    parser.add_argument("--small", action="store_true", help="tiny models, to try the benchmark")
    args = parser.parse_args()
    config = SMALL_DECODER if args.small else DECODER
    size = (2, 64, 4) if args.small else (12, 768, 12)
    models = {
        "decoder": lambda: decoder(config, kv=True),
        "decoder without cache": lambda: decoder(config, kv=False),
        "encoder": lambda: encoder(*size),
    }
    device = Device(args.provider, seconds=0.05 if args.small else 0.5)
    rows: list[dict[str, Any]] = []
    for name, make in models.items():
        with tempfile.TemporaryDirectory(prefix="qgraph-") as folder:
            plain = Path(folder) / "plain.onnx"
            onnx_io.save(make(), plain)
            paths = {form: Path(folder) / f"{form}.onnx" for form in FORMS}
            found = {f: write(make(), f, args.provider, path) for f, path in paths.items()}
            print(f"{name}: {found}")
            for case in cases(args.small, args.provider):
                if case.model == name:
                    rows.append(measured(case, paths, plain, device))
            gc.collect()
    table = Table("model", "what", "lengths", "ONNX us", "contributed us", "ratio", "error")
    for row in rows:
        lengths = " ".join(f"{k}={row[k]}" for k in ("batch", "seq", "past") if k in row)
        errors = f"{row['ONNX_error']:.1e} {row['contributed_error']:.1e}"
        numbers = (f"{row['ONNX_us']}", f"{row['contributed_us']}", f"{row['ratio']}")
        table.add_row(row["model"], row["what"], lengths, *numbers, errors)
    Console().print(table)
    if args.output is not None:
        args.output.write_text(json.dumps({"onnxruntime": ort.__version__, "rows": rows}, indent=1))
    wrong = [row for row in rows if row["contributed_error"] > LIMITS[args.provider]]
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
