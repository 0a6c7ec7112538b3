"""What plan and report say of a weight that was quantized."""

from collections.abc import Mapping
from typing import Any

from qgraph.facts import Plan, QuantizedWeight
from qgraph.graph import Graph
from qgraph.passes.weight_only.solve import Solution
from qgraph.pipeline import PassReport


def record(
    name: str, solution: Solution, method: str, group: int, plan: Plan, report: PassReport
) -> None:
    """Note one weight.

    Args:
        name: Its node's.
        solution: What it became.
        method: The method asked for.
        group: The group length asked for.
        plan: Gets the node's precision and reason.
        report: Gets a line and an entry.
    """
    weight = solution.weight
    label = weight.encoding.dtype if isinstance(weight, QuantizedWeight) else method
    error = f"relative error of the result {solution.loss:.3g}"
    if solution.before is not None:
        error += f", rounded to nearest {solution.before:.3g}"
    plan.nodes[name] = (label.removeprefix("u"), f"{solution.method}, {error}")
    report.did(f"{name}: {label} by {solution.method}, {error}, {solution.seconds:.2f} s")
    if isinstance(weight, QuantizedWeight) and group not in (0, *weight.encoding.block):
        length = max(weight.encoding.block)
        report.details.append(f"{name}: groups of {length}: the target wants whole ones")
    if solution.note:
        report.details.append(f"{name}: {solution.note}")
    report.layers.append(
        {
            "name": name,
            "type": label,
            "method": solution.method,
            "bits": _bits(weight),
            "error_before": solution.before,
            "error": solution.loss,
            "seconds": round(solution.seconds, 3),
            "note": solution.note,
        }
    )


def _bits(weight: Any) -> float:
    """Stored bits a weight, scales and zero points included."""
    if not isinstance(weight, QuantizedWeight):
        return round(float(weight.bits()), 3)
    encoding = weight.encoding
    bits = int(encoding.dtype[-1])
    zero = 0 if encoding.dtype.startswith("int") else bits
    return round(bits + (32 + zero) * encoding.scale.size / weight.codes.size, 3)


def float_share(graph: Graph, sizes: Mapping[str, int], report: PassReport) -> str | None:
    """Say how much of what linear layers read is still float, which bounds how fast they get.

    Args:
        graph: With quantized weights in it.
        sizes: Number of weights of each layer that was to be quantized, by name.
        report: Has their bits.
    """
    few = sum(sizes[row["name"]] * row["bits"] / 8 for row in report.layers if row["name"] in sizes)
    floats = {}
    for node in graph.nodes("MatMul", "Gemm"):
        tensor = graph.tensor(node.inputs[1])
        if tensor is not None:
            floats[node.name or ""] = tensor.nbytes
    if not floats or not few:
        return None
    largest = max(floats, key=floats.__getitem__)
    share = sum(floats.values()) / (few + sum(floats.values()))
    return f"{share:.0%} of the bytes of linear weights are float now, most of them of {largest}"
