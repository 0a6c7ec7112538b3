"""Float64 simulation of a quantization plan, and the steps that lead to one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from harness import run_reference
from onnx.reference import ReferenceEvaluator

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.facts import Facts
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.insert_qdq import InsertQDQ
from qgraph.passes.plan import PlanQuantization
from qgraph.passes.quantize_weights import QuantizeWeights
from qgraph.pipeline import Pipeline
from qgraph.target import target

LIMITS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535)}


@dataclass
class Quantized:
    """A model on both sides of InsertQDQ, with the facts that describe the step."""

    before: onnx.ModelProto  # nodes named
    after: onnx.ModelProto
    facts: Facts


def samples(proto: onnx.ModelProto, count: int = 4, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        feeds = {}
        for value in proto.graph.input:
            shape = [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
        result.append(feeds)
    return result


def quantize_model(
    proto: onnx.ModelProto,
    data: list[dict[str, np.ndarray]] | None = None,
    *,
    exclude: tuple[str, ...] = (),
    observer: str = "minmax",
    hardware: str = "cpu",
    **options: Any,
) -> Quantized:
    graph = onnx_io.load(proto)
    context = Context(target=target(hardware), data=data or samples(proto), exclude=exclude)
    passes = [PlanQuantization(**options), Calibrate(observer=observer), QuantizeWeights()]
    Pipeline(passes).run(graph, context)
    before = onnx_io.to_proto(graph)
    Pipeline([InsertQDQ()], given=graph.facts.present()).run(graph, context)
    after = onnx_io.to_proto(graph)
    onnx.checker.check_model(after, full_check=True)
    return Quantized(before, after, graph.facts)


def simulate(case: Quantized, feeds: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
    """Outputs in float64, and how near (in steps) any rounding came to a tie."""
    facts, plan = case.facts, case.facts.plan
    assert plan is not None and facts.encodings is not None and facts.weights is not None
    nearest = [0.5]

    def fake(x: np.ndarray, name: str) -> np.ndarray:
        encoding = facts.encodings[name]
        low, high = LIMITS[encoding.dtype]
        scale, zero = float(encoding.scale), int(encoding.zero_point)
        steps = x / scale
        inside = (steps + zero > low - 1) & (steps + zero < high + 1)
        gap = np.abs(np.abs(steps - np.floor(steps)) - 0.5)[inside]
        nearest[0] = min(nearest[0], float(gap.min(initial=0.5)))
        return (np.clip(np.rint(steps) + zero, low, high) - zero) * scale

    values = {k: v.astype(np.float64) for k, v in feeds.items()}
    for tensor in case.before.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        values[tensor.name] = array.astype(np.float64) if array.dtype.kind == "f" else array
    for node in case.before.graph.node:
        inputs = {}
        for index, name in enumerate(node.input):
            if not name:
                continue
            value = values[name]
            if (node.name, index) in plan.weights:
                weight = facts.weights[node.name, index]
                value = weight.codes.astype(np.float64) * weight.encoding.scale
            elif (node.name, index) in plan.biases:
                scale = facts.weights[node.name, 1].encoding.scale.reshape(-1)
                step = float(facts.encodings[node.input[0]].scale) * scale.astype(np.float64)
                value = np.rint(value / step) * step
            elif name in plan.activations and (
                name in plan.writes or (node.name, index) in plan.reads
            ):
                value = fake(value, name)
            inputs[f"{name}#{index}"] = value
        for name, value in zip(node.output, _run(node, inputs, case.before), strict=True):
            values[name] = value
    return {o.name: values[o.name] for o in case.after.graph.output}, nearest[0]


def assert_simulated(case: Quantized, proto: onnx.ModelProto, margin: float = 1e-3) -> None:
    """The inserted graph, run without optimisation, gives what the plan says.

    Inputs are drawn until no value lies within `margin` of a tie, where float32 may round another
    way than float64; then the two must agree to float32 accuracy.
    """
    for seed in range(100, 300):
        feeds = samples(proto, 1, seed)[0]
        want, nearest = simulate(case, feeds)
        if nearest > margin:
            break
    else:
        raise AssertionError("no inputs without near-ties; use a smaller net")
    got = run_reference(case.after, feeds)
    for name, array in want.items():
        span = max(float(np.abs(array).max()), 1e-6)
        assert np.abs(got[name] - array).max() <= 1e-5 * span, name


def _run(
    node: onnx.NodeProto, inputs: dict[str, np.ndarray], proto: onnx.ModelProto
) -> list[np.ndarray]:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    keys = iter(inputs)
    for index, name in enumerate(node.input):
        if name:
            copy.input[index] = next(keys)
    graph = onnx.helper.make_graph(
        [copy],
        "one",
        [onnx.helper.make_value_info(k, onnx.TypeProto()) for k in inputs],
        [onnx.helper.make_value_info(o, onnx.TypeProto()) for o in node.output],
    )
    model = onnx.helper.make_model(graph, opset_imports=list(proto.opset_import))
    return list(ReferenceEvaluator(model).run(None, inputs))
