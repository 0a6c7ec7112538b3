"""Writes the plan into the graph as QuantizeLinear and DequantizeLinear nodes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qgraph.context import Context
from qgraph.encoding import INTEGERS, Encoding, code_type
from qgraph.errors import UsageError
from qgraph.facts import Plan, QuantizedWeight
from qgraph.graph import Graph, Node, Value
from qgraph.passes.qdq_shield import shield
from qgraph.pipeline import Pass, PassReport


@dataclass(frozen=True)
class InsertQDQ(Pass):
    """Put a Q/DQ pair on every planned activation and a DQ on every weight and bias.

    A Relu or Clip vanishes where the codes behind it can't represent anything outside its
    bounds; elsewhere it stays, with Q/DQ on both sides.
    """

    name: ClassVar[str] = "insert_qdq"
    needs: ClassVar[frozenset[str]] = frozenset({"plan", "encodings", "weights"})
    gives: ClassVar[frozenset[str]] = frozenset({"quantized"})
    breaks: ClassVar[frozenset[str]] = frozenset({"units", "attention"})
    numerics = "rounding"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite the graph; facts keep the names that the values had before."""
        if graph.facts.quantized:
            raise UsageError("the graph is quantized already", fix="start from the float model")
        writer = _Writer(graph)
        writer.constants()
        writer.activations()
        graph.drop_unread_initializers()
        graph.facts.quantized = True
        return writer.report


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.plan: Plan = graph.facts.get("plan")
        self.encodings: dict[str, Encoding] = graph.facts.get("encodings")
        self.weights: dict[tuple[str, int], QuantizedWeight] = graph.facts.get("weights")
        self.nodes = {node.name or "": node for node in graph.nodes()}
        self.report = PassReport()
        self._parameters: dict[int, tuple[Value, Value]] = {}
        self._weights: dict[int, list[Value]] = {}
        self._turned: dict[tuple[Value, str], Value] = {}

    # -- weights and biases ------------------------------------------------------------------

    def constants(self) -> None:
        for (name, index), weight in self.weights.items():
            node = self.nodes[name]
            constants = self._codes(weight, _name(node, index))
            self._dequantize(node, index, constants, weight.encoding.axis)
            self.report.did(f"{name}: weight")
        for name, index in self.plan.biases:
            self._bias(self.nodes[name], index)

    def _codes(self, weight: QuantizedWeight, name: str) -> list[Value]:
        """Codes, scale and zero point as constants, the same ones for all nodes that share them."""
        if id(weight) not in self._weights:
            scale = np.atleast_1d(weight.encoding.scale.squeeze())
            zero = np.zeros(scale.shape, code_type(weight.encoding.dtype))
            self._weights[id(weight)] = [
                self.graph.constant(f"{name}_codes", weight.codes),
                self.graph.constant(f"{name}_scale", scale),
                self.graph.constant(f"{name}_zero_point", zero),
            ]
        return self._weights[id(weight)]

    def _bias(self, node: Node, index: int) -> None:
        if index >= len(node.inputs):
            return
        bias = self.graph.array(node.inputs[index])
        data = node.inputs[0]
        assert bias is not None and data is not None
        weight = self.weights[node.name or "", 1].encoding
        # One channel of the accumulator counts in steps of data scale times weight scale.
        channels = np.broadcast_to(weight.scale.reshape(-1), bias.shape)
        own = self.plan.recoded.get((node.name or "", 0), self.encodings[data.name or ""])
        step = (own.scale * channels).astype(np.float32)
        low, high, dtype = INTEGERS["int32"]
        codes = np.clip(np.rint(bias.astype(np.float64) / step), low, high).astype(dtype)
        inputs = [
            self.graph.constant(f"{_name(node, index)}_codes", codes),
            self.graph.constant(f"{_name(node, index)}_scale", step),
        ]
        self._dequantize(node, index, inputs, 0)

    def _dequantize(self, node: Node, index: int, inputs: list[Value], axis: int | None) -> None:
        old = node.inputs[index]
        dq = self.graph.insert(
            "DequantizeLinear",
            inputs,
            before=node,
            attributes={} if axis is None else {"axis": axis},
            name=f"{_name(node, index)}_dq",
            like=old,
        )
        self.graph.set_input(node, index, dq.outputs[0])

    # -- activations -------------------------------------------------------------------------

    def activations(self) -> None:
        values = {v.name: v for v in [*self.graph.main.inputs, *self._results()]}
        # Reads are looked up before anything is rewired: names change on the way.
        for name in self.plan.activations:
            self._activation(values[name], name)

    def _results(self) -> list[Value]:
        return [out for node in self.graph.nodes() for out in node.outputs]

    def _activation(self, value: Value, name: str) -> None:
        encoding = self.encodings[name]
        producer = value.producer()
        bounds = self.plan.absorbed.get((producer.name or "") if producer else "")
        readers = [
            (use.node, use.idx)
            for use in list(value.uses())
            if name in self.plan.writes or (use.node.name or "", use.idx) in self.plan.reads
        ]
        source = value
        if bounds is not None and producer is not None:
            source = self._absorb(producer, value, encoding, bounds)
        pair = self._pair(source, encoding, name)
        for node, index in readers:
            self.graph.set_input(node, index, self._recoded(pair, node, index, name))
        for node, index in readers:
            if index == 0 and (node.name or "", index) not in self.plan.reads:
                shield(self.graph, node, pair, encoding, self.report)
        if producer is not None and source is not value:
            self.graph.remove_unread([producer])
        dequantize = pair.producer()
        if dequantize is not None:  # nobody reads it if every reader was shielded
            self.graph.remove_unread([dequantize])
        self.report.did(f"{name}: activation")

    def _absorb(
        self, activation: Node, value: Value, encoding: Encoding, bounds: tuple[float, float]
    ) -> Value:
        """Return the value to quantize: the activation's input if the codes do its work."""
        inner = activation.inputs[0]
        assert inner is not None
        low, high, _ = INTEGERS[encoding.dtype]
        scale, zero = float(encoding.scale), int(encoding.zero_point)
        # Within half a step of a bound, the bound itself rounds to the same code.
        if (low - zero) * scale > bounds[0] - scale / 2 and (
            (high - zero) * scale < bounds[1] + scale / 2
        ):
            return inner
        pair = self._pair(inner, encoding, inner.name or "")
        self.graph.set_input(activation, 0, pair)
        return value

    def _pair(self, value: Value, encoding: Encoding, name: str) -> Value:
        scale, zero = self._shared(encoding, name)
        producer = value.producer()
        q = self.graph.insert(
            "QuantizeLinear",
            [value, scale, zero],
            after=producer,
            before=None if producer else next(iter(self.graph.main)),
            name=f"{name}_q",
        )
        q.outputs[0].type = ir.TensorType(zero.dtype)  # type: ignore[arg-type]
        q.outputs[0].shape = None if value.shape is None else value.shape.copy()
        dq = self.graph.insert(
            "DequantizeLinear",
            [q.outputs[0], scale, zero],
            after=q,
            name=f"{name}_dq",
            like=value,
        )
        return dq.outputs[0]

    def _recoded(self, pair: Value, node: Node, index: int, name: str) -> Value:
        """Return what an input reads: the value's codes, or those turned into the ones it wants."""
        wanted = self.plan.recoded.get((node.name or "", index))
        if wanted is None:
            return pair
        key = pair, wanted.dtype
        if key not in self._turned:
            self._turned[key] = self._pair(pair, wanted, f"{name}_{wanted.dtype}")
        return self._turned[key]

    def _shared(self, encoding: Encoding, name: str) -> tuple[Value, Value]:
        """Scale and zero point as constants, the same ones for all values of a group."""
        if id(encoding) not in self._parameters:
            dtype = code_type(encoding.dtype)
            self._parameters[id(encoding)] = (
                self.graph.constant(f"{name}_scale", encoding.scale),
                self.graph.constant(f"{name}_zero_point", encoding.zero_point.astype(dtype)),
            )
        return self._parameters[id(encoding)]


def _name(node: Node, index: int) -> str:
    value = node.inputs[index]
    return (value.name if value is not None else None) or f"{node.name}_{index}"
