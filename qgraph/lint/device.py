"""Rules of hardware that qgraph has no engine for: what the target's data say."""

from collections.abc import Callable, Iterable

from qgraph.graph import Node
from qgraph.lint.rule import Rule, RuleSet
from qgraph.lint.view import View
from qgraph.onnx_io import weight_bytes
from qgraph.target import Target

Check = Callable[[View, Node], str | None]
Scan = Callable[[View], Iterable[tuple[str, str]]]


def device_rules(target: Target) -> RuleSet:
    """Return the rules that follow from a target's wishes and limits."""
    source = f"target {target.name!r} in qgraph/targets: {target.summary}"
    specs = [target.activation, *target.activations.values()]
    symmetric = all(spec.symmetric for spec in specs)
    types = frozenset(spec.dtype for spec in specs)
    rules = [
        Rule(
            "code-type",
            "falls back",
            f"activations are not in {' or '.join(sorted(types))}",
            source,
            check=_wrong_type(types),
            ops=frozenset({"QuantizeLinear"}),
            fix=_fix_for(types, symmetric),
        )
    ]
    if symmetric:
        rules.insert(
            0,
            Rule(
                "zero-point",
                "refused",
                "a zero point is not 0",
                source,
                check=nonzero_zero_point,
                ops=frozenset({"QuantizeLinear", "DequantizeLinear"}),
                fix=("dequantize_early", "symmetric_weights", "symmetric_activations"),
            ),
        )
    if target.fixed_shapes:
        advice = "export the model with fixed shapes"
        rules.append(
            Rule(
                "fixed-shapes",
                "refused",
                "an input has dynamic axes",
                source,
                scan=_dynamic,
                advice=advice,
            )
        )
    if target.batch is not None:
        what = f"the batch is not {target.batch}"
        rules.append(Rule("batch", "refused", what, source, scan=_other_batch(target.batch)))
    if target.memory is not None:
        what = f"the weights are larger than {target.memory / 2**20:.0f} MiB"
        rules.append(Rule("memory", "slow", what, source, scan=_too_large(target.memory)))
    return RuleSet(target.name, tuple(rules))


def nonzero_zero_point(view: View, node: Node) -> str | None:
    """Check of a rule: a Q or DQ with a constant zero point other than 0."""
    found = view.parameters(node) if view.is_quantizer(node) else ""
    if isinstance(found, str) or not found.zero_point.any():
        return None
    if found.zero_point.size == 1:
        return f"zero point {int(found.zero_point.reshape(()))}"
    nonzero = int((found.zero_point != 0).sum())
    return f"{nonzero} of {found.zero_point.size} zero points"


def _fix_for(types: frozenset[str], symmetric: bool) -> tuple[str, ...]:
    if symmetric and "int8" in types:
        return ("dequantize_early", "symmetric_weights", "symmetric_activations")
    return ("dequantize_early", "signed_to_unsigned") if "uint8" in types else ()


def _wrong_type(types: frozenset[str]) -> Check:
    def check(view: View, node: Node) -> str | None:
        if view.graph.is_constant(view.input(node, 0)):
            return None
        found = view.code_type(node)
        return f"codes are {found}" if found and found not in types else None

    return check


def _dynamic(view: View) -> Iterable[tuple[str, str]]:
    for value in view.graph.inputs:
        shape = view.graph.shape(value)
        if shape is None:
            yield value.name or "", "no known rank"
        elif axes := [i for i, length in enumerate(shape) if not isinstance(length, int)]:
            yield value.name or "", f"axes {axes}"


def _other_batch(batch: int) -> Scan:
    def scan(view: View) -> Iterable[tuple[str, str]]:
        for value in view.graph.inputs:
            shape = view.graph.shape(value)
            if shape and isinstance(shape[0], int) and shape[0] != batch:
                yield value.name or "", f"batch {shape[0]}"

    return scan


def _too_large(limit: int) -> Scan:
    def scan(view: View) -> Iterable[tuple[str, str]]:
        size = weight_bytes(view.graph)
        if size > limit:
            yield "", f"{size / 2**20:.0f} MiB of weights"

    return scan
