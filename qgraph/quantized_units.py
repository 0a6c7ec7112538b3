"""Quantized nodes with the Q/DQ in front of them, and the search for those an engine refuses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qgraph.graph import Graph, Node, Value
from qgraph.passes.cleanup._evaluate import Evaluator
from qgraph.passes.rewrites._qdq import label

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class QuantizedUnit:
    """A node that reads codes through DequantizeLinear.

    Attributes:
        node: Its name, or that of its first output.
        inputs: Which of its inputs do.
    """

    node: str
    inputs: tuple[int, ...]


Refuses = Callable[[Sequence[QuantizedUnit]], str | None]


def quantized_units(graph: Graph) -> list[QuantizedUnit]:
    """Return every node whose Q/DQ can be taken away, in graph order."""
    found = []
    for node in graph.nodes():
        if graph.is_standard(node, *_QUANTIZERS):
            continue
        inputs = [
            index
            for index, value in enumerate(node.inputs)
            if value is not None and _is_pair(graph, value.producer())
        ]
        if inputs:
            found.append(QuantizedUnit(label(node), tuple(inputs)))
    return found


def drop_units(graph: Graph, units: Sequence[QuantizedUnit]) -> None:
    """Take away the Q/DQ of units: activations come as they are, weights as their codes say."""
    wanted = {unit.node: unit.inputs for unit in units}
    evaluator = Evaluator(graph.opset)
    for node in list(graph.nodes()):
        for index in wanted.get(label(node), ()):
            value = node.inputs[index]
            dequantizer = None if value is None else value.producer()
            if dequantizer is None:
                continue
            quantizer = _quantizer(graph, dequantizer)
            if quantizer is not None:
                graph.set_input(node, index, quantizer.inputs[0])
                graph.remove_unread([quantizer, dequantizer])
            else:
                graph.set_input(node, index, _constant(graph, dequantizer, evaluator))
                graph.remove_unread([dequantizer])
    graph.drop_unread_initializers()


def find_culprits(
    units: Sequence[QuantizedUnit], refuses: Refuses, hinted: Sequence[QuantizedUnit] = ()
) -> dict[QuantizedUnit, str]:
    """Find a small set of units without which the rest is accepted.

    Halves are tried on their own, so that each of k culprits among n costs about 2 log2(n) builds;
    a set that is refused only as a whole is thinned out one by one.

    Args:
        units: All units; together they are refused, and none of them is accepted.
        refuses: Says why the model is refused with only these units quantized, or None.
        hinted: Units that are looked at first.

    Returns:
        Each culprit with what was said of it, in the order of `units`.
    """
    found: dict[QuantizedUnit, str] = {}
    reason = refuses(list(hinted)) if hinted else None
    if reason is not None:
        found |= _culprits(list(hinted), reason, refuses)
    rest = [unit for unit in units if unit not in found]
    while rest and (reason := refuses(rest)) is not None:
        found |= _culprits(rest, reason, refuses)
        rest = [unit for unit in units if unit not in found]
    return {unit: found[unit] for unit in units if unit in found}


def _culprits(
    units: list[QuantizedUnit], reason: str, refuses: Refuses
) -> dict[QuantizedUnit, str]:
    """Return culprits among units that are refused together, at least one."""
    if len(units) == 1:
        return {units[0]: reason}
    half = len(units) // 2
    found: dict[QuantizedUnit, str] = {}
    for part in (units[:half], units[half:]):
        why = refuses(part)
        if why is not None:
            found |= _culprits(part, why, refuses)
    return found or _together(units, reason, refuses)


def _together(
    units: list[QuantizedUnit], reason: str, refuses: Refuses
) -> dict[QuantizedUnit, str]:
    """Return one unit of the smallest set that is refused only as a whole."""
    needed = list(units)
    for unit in units:
        fewer = [each for each in needed if each != unit]
        why = refuses(fewer) if fewer else None
        if why is not None:
            needed, reason = fewer, why
    return {needed[-1]: reason}


def _is_pair(graph: Graph, dequantizer: Node | None) -> bool:
    """Whether a node is a DequantizeLinear of constants, or right behind its QuantizeLinear."""
    if dequantizer is None or not graph.is_standard(dequantizer, "DequantizeLinear"):
        return False
    constant = all(each is None or graph.is_constant(each) for each in dequantizer.inputs)
    return constant or _quantizer(graph, dequantizer) is not None


def _quantizer(graph: Graph, dequantizer: Node) -> Node | None:
    codes = dequantizer.inputs[0]
    producer = None if codes is None else codes.producer()
    return producer if producer and graph.is_standard(producer, "QuantizeLinear") else None


def _constant(graph: Graph, dequantizer: Node, evaluator: Evaluator) -> Value:
    arrays = [None if each is None else graph.array(each) for each in dequantizer.inputs]
    (values,) = evaluator.run(dequantizer, arrays)
    return graph.constant(f"{dequantizer.outputs[0].name}_float", values)
