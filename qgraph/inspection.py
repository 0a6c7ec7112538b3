"""What `qgraph inspect` finds out about a model, as plain data."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from qgraph import flow, text
from qgraph.context import Context
from qgraph.graph import ONNX_DOMAINS, Graph, Node, Value
from qgraph.pipeline import Pipeline
from qgraph.recognise import quantized_ops
from qgraph.target import Target


def describe(graph: Graph) -> dict[str, Any]:
    """Return what a model is: interface, operators, parameters, opsets, metadata.

    Keys: `ir_version`, `producer`, `opsets` (domain -> version), `functions` (number), `inputs`
    and `outputs` (name, dtype, shape), `dynamic_axes` (axis name -> places), `operators` (op ->
    number), `custom_operators`, `nodes`, `parameters` (count, bytes, by_type), `metadata`, `quantized`
    (quantized op -> number; empty for a float model), `notes`.
    """
    nodes = list(graph.walk())
    model = graph.model
    return {
        "ir_version": model.ir_version,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "opsets": {domain or "ai.onnx": v for domain, v in model.opset_imports.items()},
        "functions": len(model.functions),
        "inputs": [_value(value) for value in graph.inputs],
        "outputs": [_value(value) for value in graph.outputs],
        "dynamic_axes": _dynamic_axes([*graph.inputs, *graph.outputs]),
        "nodes": len(nodes),
        "operators": dict(Counter(map(_op, nodes)).most_common()),
        "custom_operators": dict(Counter(_op(n) for n in nodes if n.domain not in ONNX_DOMAINS)),
        "parameters": _parameters(graph, nodes),
        "metadata": dict(model.metadata_props),
        "quantized": dict(quantized_ops(graph)),
        "notes": list(graph.notes),
    }


def rewrites(graph: Graph) -> list[dict[str, Any]]:
    """Run normalisation, clean-up and fusions on `graph`, in place, and say what each one did.

    Returns:
        One entry a pass that did, found or refused something: `pass`, `changed` (0 for passes that
        only mark what they find), `details` (a line for each), `refused` (reason -> number), `where` (reason -> up to 5 places).
    """
    found = []
    for stage in Pipeline(flow.exact_passes({})).run(graph):
        places: dict[str, list[str]] = defaultdict(list)
        for refusal in stage.report.refused:
            places[refusal.reason].append(refusal.where)
        if stage.report.changed or stage.report.details or places:
            found.append(
                {
                    "pass": stage.name,
                    "changed": stage.report.changed,
                    "details": list(stage.report.details),
                    "refused": {reason: len(where) for reason, where in places.items()},
                    "where": {reason: where[:5] for reason, where in places.items()},
                }
            )
    return found


def quantizable(graph: Graph, target: Target, exclude: Sequence[str] = ()) -> dict[str, Any]:
    """Say which nodes of a rewritten graph a target would run in integers, and why not the rest.

    Args:
        graph: After `rewrites`; it gets a new `plan` fact, nothing else changes.
        target: Whose rules.
        exclude: Globs of nodes and operators that stay in float.

    Returns:
        `precisions`, `quantized` (op -> number), `float` (op -> reason -> number).
    """
    from qgraph.passes import pass_class

    planner = pass_class("plan").with_options({})
    context = Context(target=target, exclude=tuple(exclude))
    Pipeline([planner], given=graph.facts.present()).run(graph, context)
    plan = graph.facts.plan
    ops = {node.name or "": _op(node) for node in graph.nodes()}
    quantized: Counter[str] = Counter()
    left: dict[str, Counter[str]] = defaultdict(Counter)
    for name, (precision, reason) in (plan.nodes if plan else {}).items():
        if precision == "float":
            left[ops.get(name, "?")][reason] += 1
        else:
            quantized[ops.get(name, "?")] += 1
    main = set(graph.nodes())
    for node in graph.walk():
        if node not in main:
            left[_op(node)]["inside the body of an If, Loop or Scan"] += 1
    return {
        "precisions": list(target.precisions),
        "quantized": dict(quantized.most_common()),
        "float": {op: dict(reasons.most_common()) for op, reasons in sorted(left.items())},
    }


def _op(node: Node) -> str:
    return node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}.{node.op_type}"


def _value(value: Value) -> dict[str, Any]:
    shape = Graph.shape(value)
    return {
        "name": value.name or "",
        "dtype": text.dtype(value.dtype.name) if value.dtype is not None else str(value.type),
        "shape": None if shape is None else list(shape),
    }


def _dynamic_axes(values: list[Value]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for value in values:
        for axis, length in enumerate(Graph.shape(value) or ()):
            if not isinstance(length, int):
                found[length or "?"].append(f"{value.name}[{axis}]")
    return dict(found)


def _parameters(graph: Graph, nodes: list[Node]) -> dict[str, Any]:
    """Count elements of constants; weights inside Constant nodes are weights too."""
    tensors = [
        value.const_value
        for each in graph.graphs()
        for value in each.initializers.values()
        if value.const_value is not None
    ]
    for node in nodes:
        if node.op_type == "Constant" and node.domain in ONNX_DOMAINS:
            tensor = graph.tensor(node.outputs[0])
            if tensor is not None:
                tensors.append(tensor)
    by_type: Counter[str] = Counter()
    for tensor in tensors:
        by_type[text.dtype(tensor.dtype.name)] += tensor.size
    return {
        "count": sum(by_type.values()),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "tensors": len(tensors),
        "by_type": dict(by_type.most_common()),
    }
