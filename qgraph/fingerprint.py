"""Hashes of nodes and values that depend on what they compute, and not on their names."""

import hashlib
from collections.abc import Iterator

import onnx_ir as ir

from qgraph.graph import Graph, Node, Value
from qgraph.structure import bodies_of
from qgraph.text import dtype

_SMALL = 64


class Fingerprints:
    """Hashes for every node and value of a graph; equal ones compute the same.

    A graph input counts by its name, a constant by type, shape and content, a node by operator,
    attributes and the hashes of its inputs.
    """

    def __init__(self, graph: Graph) -> None:
        """Hash everything; takes one pass over the nodes and reads every constant once."""
        self._values: dict[Value, bytes] = {}
        self._nodes: dict[Node, bytes] = {}
        self._tensors: dict[int, bytes] = {}
        self._sparse = graph.sparse
        self._body(graph.main, "")

    def node(self, node: Node) -> bytes:
        """Hash of a node."""
        return self._nodes[node]

    def value(self, value: Value) -> bytes:
        """Hash of a value."""
        found = self._values.get(value)
        if found is None:
            sparse = self._sparse.get(value.name or "")
            content = sparse.SerializeToString() if sparse is not None else b""
            found = self._values[value] = _hash("free", value.name or "", content)
        return found

    def tensor(self, tensor: ir.TensorProtocol) -> bytes:
        """Hash of type, shape and content."""
        known = self._tensors.get(id(tensor))
        if known is None:
            digest = _Hash("tensor", tensor.dtype.name, *map(str, tensor.shape.numpy()))
            if tensor.dtype == ir.DataType.STRING:
                for item in tensor.numpy().reshape(-1):
                    digest.add(item if isinstance(item, bytes) else str(item))
            else:
                digest.add(tensor.tobytes())
            known = self._tensors[id(tensor)] = digest.done()
        return known

    def _body(self, body: ir.Graph, where: str) -> bytes:
        for index, value in enumerate(body.inputs):
            # Inputs of a body are bound by position, those of the model by name.
            self._values[value] = _hash("input", where, str(index) if where else value.name or "")
        for value in body.initializers.values():
            if value.const_value is not None and value not in self._values:
                self._values[value] = self.tensor(value.const_value)
        for node in body:
            digest = _Hash("node", node.domain, node.op_type, node.overload)
            for value_in in node.inputs:
                digest.add("omitted" if value_in is None else self.value(value_in))
            for name, value_text in sorted(attributes_of(node, self).items()):
                digest.add(name).add(value_text)
            for name, attr in sorted(node.attributes.items()):
                for index, inner in enumerate(bodies_of(attr)):
                    digest.add(self._body(inner, f"{where}/{name}{index}"))
            self._nodes[node] = found = digest.add(str(len(node.outputs))).done()
            for index, value in enumerate(node.outputs):
                self._values[value] = _hash("output", str(index), found)
        return _Hash("body", *map(self.value, body.outputs)).done()


def attributes_of(node: Node, prints: Fingerprints) -> dict[str, str]:
    """Attributes as text that is equal where they are; bodies are left out."""
    found = {}
    for name, attr in node.attributes.items():
        if bodies_of(attr):
            continue
        if attr.is_ref():
            found[name] = f"@{attr.ref_attr_name}"
        elif attr.type == ir.AttributeType.TENSOR:
            tensor = attr.as_tensor()
            short = str(tensor.numpy().tolist()) if tensor.size <= _SMALL else "..."
            digest = prints.tensor(tensor).hex()[:8]
            found[name] = f"{dtype(tensor.dtype.name)} {short} ({digest})"
        elif attr.type == ir.AttributeType.TENSORS:
            found[name] = " ".join(prints.tensor(t).hex() for t in attr.as_tensors())
        else:
            found[name] = str(attr.value)
    return found


def walk(graph: Graph) -> Iterator[Node]:
    """Yield every node in the order in which they run, bodies before the node that holds them."""
    yield from _walk(graph.main)


def _walk(body: ir.Graph) -> Iterator[Node]:
    for node in body:
        for attr in node.attributes.values():
            for inner in bodies_of(attr):
                yield from _walk(inner)
        yield node


class _Hash:
    def __init__(self, *parts: str | bytes) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            self.add(part)

    def add(self, part: str | bytes) -> "_Hash":
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        # With its length, so that ("ab", "c") and ("a", "bc") differ.
        self._digest.update(len(data).to_bytes(8, "little"))
        self._digest.update(data)
        return self

    def done(self) -> bytes:
        return self._digest.digest()


def _hash(*parts: str | bytes) -> bytes:
    return _Hash(*parts).done()
