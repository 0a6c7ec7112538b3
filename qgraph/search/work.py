"""What a model's kernels have to do: operations, bytes, and the type that they compute in."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from qgraph.graph import Graph, Node, Value
from qgraph.search.observed import Seen

Shape = tuple[int, ...]
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits")
# Change nothing but how bytes are seen, or compute shapes.
FREE = ("Constant", "Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze")
_READ_BY_ROWS = ("Gather", "GatherElements", "GatherND", "Slice")
_ATTENTION = ("Attention", "GroupQueryAttention", "MultiHeadAttention")
# Integers of so few elements are shapes, which are computed beside the device.
_FEW = 64
_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_FORMATS = {"int8": "int8", "uint8": "int8", "float8e4m3fn": "fp8", "int4": "int4", "uint4": "int4"}
# Activations of 16 bits, by weights of 8 or by one another.
_FORMATS |= dict.fromkeys(("int16", "uint16"), "w8a16")
_WIDE = {("w8a16", "int8"), ("w8a16", "w8a16")}


@dataclass(frozen=True)
class Work:
    """One kernel.

    Attributes:
        op: Operator, the first where several run in one kernel.
        precision: What it multiplies: a float type, `int8`, `w8a16`, `fp8`, or `int4-weights` and
            `int8-weights` for floats by weights in few bits.
        computes: Its float type.
        operations: Multiplications and additions.
        moved: Bytes read and written.
        inputs: Shapes of its data and its weight.
        output: Shape of its result.
        product: Rows, depth, width and block length, where it multiplies by a constant matrix.
    """

    op: str
    precision: str
    computes: str
    operations: float
    moved: float
    inputs: tuple[Shape, ...] = ()
    output: Shape = ()
    product: tuple[int, int, int, int] | None = field(default=None)

    def in_halves(self) -> "Work":
        """Return the same product in float16."""
        assert self.product is not None
        rows, depth, width, _ = self.product
        moved = 2.0 * (rows * depth + depth * width + rows * width)
        return replace(self, precision="fp16", computes="fp16", moved=moved)


def works(
    graph: Graph, seen: Mapping[str, Seen], fused: Collection[str], codes: Collection[str]
) -> list[Work]:
    """Return the kernels of a graph, in its order.

    Args:
        graph: The model.
        seen: What its inputs and the results of its nodes look like.
        fused: Operators that run in the kernel of the product in front of them.
        codes: In which codes the backend multiplies.
    """
    made = _Kernels(graph, seen, fused, codes)
    products = {node: made.product(node) for node in graph.nodes() if node.op_type in PRODUCTS}
    found = []
    for node in graph.walk():
        if node in products:
            found.append(products[node])
        elif node not in made.inside and not made.is_free(node):
            found.append(made.other(node))
    return found


class _Kernels:
    """Counts; `inside` are nodes that run in another one's kernel."""

    def __init__(
        self,
        graph: Graph,
        seen: Mapping[str, Seen],
        fused: Collection[str],
        codes: Collection[str],
    ) -> None:
        self.graph, self.seen, self.fused, self.codes = graph, seen, fused, codes
        self.inside: set[Node] = set()

    def shape(self, value: Value | None) -> Shape:
        tensor = self.graph.tensor(value)
        if tensor is not None:
            return tuple(int(n) for n in tensor.shape.numpy())
        look = self.seen.get("" if value is None else value.name or "")
        return () if look is None else look.shape

    def dtype(self, value: Value | None) -> str:
        tensor = self.graph.tensor(value)
        if tensor is not None:
            return str(tensor.dtype.name.lower())
        producer = None if value is None else value.producer()
        if producer is not None and producer.op_type == "QuantizeLinear":
            zero = producer.inputs[2] if len(producer.inputs) > 2 else None
            return self.dtype(zero) if zero is not None else "uint8"
        if producer is not None and producer.op_type == "Cast":
            return ir.DataType(Graph.attribute(producer, "to", 1)).name.lower()
        look = self.seen.get("" if value is None else value.name or "")
        return "float32" if look is None else str(look.dtype)

    def nbytes(self, value: Value | None) -> float:
        if value is None:
            return 0.0
        tensor = self.graph.tensor(value)
        if tensor is not None:
            return float(tensor.nbytes)
        name = self.dtype(value).upper()
        width = ir.DataType[name].itemsize if name in ir.DataType.__members__ else 4
        return math.prod(self.shape(value)) * float(width)

    def is_free(self, node: Node) -> bool:
        if node.op_type in FREE:
            return True
        looks = [self.seen.get(out.name or "") for out in node.outputs]
        return all(x is not None and x.dtype.kind in "iub" and x.size <= _FEW for x in looks)

    def product(self, node: Node) -> Work:
        """A product with everything that runs in its kernel."""
        data, weight = self._operands(node)
        float_type = _TYPES.get(self.dtype(node.outputs[0]), "fp32")
        formats = [self._codes_of(data), self._codes_of(weight)]
        precision, read = float_type, [data, weight]
        (left, behind), (right, weights_behind) = formats
        coded = left and (left == right or (left, right) in _WIDE)
        if coded and left in self.codes:
            precision, read = left, [behind[0].inputs[0], weights_behind[0].inputs[0]]
            self.inside.update(*(behind, weights_behind))
        elif not left and right and f"{right}-weights" in self.codes:
            precision, read = f"{right}-weights", [data, weights_behind[0].inputs[0]]
            self.inside.update(weights_behind)
        block = 0
        if node.op_type == "MatMulNBits":
            precision = f"int{Graph.attribute(node, 'bits', 4)}-weights"
            block = int(Graph.attribute(node, "block_size", 0))
            read = [data, *node.inputs[1:4]]
        elif precision.endswith("-weights") and weights_behind:
            block = int(Graph.attribute(weights_behind[0], "block_size", 0))
        moved = sum(map(self.nbytes, read)) + sum(map(self.nbytes, self._rest(node)))
        operations = self._operations(node)
        last, more = self._behind(node, precision)
        for each, reads in more:
            operations += math.prod(self.shape(each.outputs[0]))
            moved += sum(map(self.nbytes, reads))
        moved += self.nbytes(last.outputs[0])
        return Work(
            node.op_type,
            precision,
            float_type,
            operations,
            moved,
            (self.shape(data), self.shape(weight)),
            self.shape(node.outputs[0]),
            self._matrix(node, weight, weights_behind, block),
        )

    def other(self, node: Node) -> Work:
        """Any other node: what it reads and writes counts."""
        out = [value for value in node.outputs if value.name]
        size = sum(math.prod(self.shape(value)) for value in out)
        written = sum(map(self.nbytes, out))
        read = [value for value in node.inputs if value is not None]
        moved = written + sum(map(self.nbytes, read))
        if node.op_type in _READ_BY_ROWS:  # no more of the table than is handed out
            moved = 2 * written + sum(map(self.nbytes, read[1:]))
        floats = [_TYPES[name] for name in map(self.dtype, (*out, *read)) if name in _TYPES]
        kind = floats[0] if floats else "fp32"
        operations = float(size)
        if node.op_type in _ATTENTION and len(read) > 1:
            places = max((self.shape(v)[-2] for v in read if len(self.shape(v)) > 2), default=1)
            operations = 4.0 * size * places
        elif node.op_type in ("GRU", "LSTM") and len(read) > 2:
            steps = math.prod(self.shape(read[0])[:2])
            operations = 2.0 * steps * sum(math.prod(self.shape(v)) for v in read[1:3])
        first = (self.shape(read[0]),) if read else ()
        shape = self.shape(out[0]) if out else ()
        return Work(node.op_type, kind, kind, operations, moved, first, shape)

    def _operands(self, node: Node) -> tuple[Value | None, Value | None]:
        return node.inputs[0], node.inputs[1]

    def _rest(self, node: Node) -> list[Value | None]:
        return [] if node.op_type == "MatMulNBits" else list(node.inputs[2:])

    def _codes_of(self, value: Value | None) -> tuple[str, list[Node]]:
        """Number format of the codes behind a value, and the nodes from them to it."""
        behind: list[Node] = []
        producer = None if value is None else value.producer()
        while producer is not None and producer.op_type in (*FREE, "Transpose"):
            behind.insert(0, producer)
            producer = producer.inputs[0].producer() if producer.inputs[0] else None
        if producer is None or producer.op_type not in ("DequantizeLinear", "Cast"):
            return "", []
        kind = _FORMATS.get(self.dtype(producer.inputs[0]), "")
        return (kind, [producer, *behind]) if kind else ("", [])

    def _behind(self, node: Node, precision: str) -> tuple[Node, list[tuple[Node, list[Value]]]]:
        """The last node of a product's kernel, and those behind the product with what else they read."""
        last = node
        found: list[tuple[Node, list[Value]]] = []
        while True:
            value = last.outputs[0]
            reader = self.graph.only_reader(value)
            if reader is None or reader in self.inside or reader.op_type in PRODUCTS:
                return last, found
            coding = reader.op_type == "QuantizeLinear" and reader.inputs[0] is value
            if coding and _FORMATS.get(self.dtype(reader.outputs[0])) not in self.codes:
                return last, found
            if not coding and reader.op_type not in self.fused:
                return last, found
            others = [v for v in reader.inputs if v is not None and v is not value]
            found.append((reader, [] if coding else others))
            self.inside.add(reader)
            last = reader
            if coding:
                return last, found

    def _operations(self, node: Node) -> float:
        out = math.prod(self.shape(node.outputs[0]))
        weight = self.shape(node.inputs[1])
        if node.op_type == "Conv":
            return 2.0 * out * math.prod(weight[1:])
        if node.op_type == "ConvTranspose":
            return 2.0 * math.prod(self.shape(node.inputs[0])) * math.prod(weight[1:])
        return 2.0 * out * self._depth(node)

    def _depth(self, node: Node) -> int:
        if node.op_type == "MatMulNBits":
            return int(Graph.attribute(node, "K", 1))
        shape = self.shape(node.inputs[0])
        if node.op_type == "Gemm" and Graph.attribute(node, "transA", 0):
            return shape[0] if shape else 1
        return shape[-1] if shape else 1

    def _matrix(
        self, node: Node, weight: Value | None, behind: list[Node], block: int
    ) -> tuple[int, int, int, int] | None:
        constant = self.graph.is_constant(behind[0].inputs[0] if behind else weight)
        if node.op_type.startswith("Conv") or not (constant or node.op_type == "MatMulNBits"):
            return None
        shape = self.shape(node.outputs[0])
        if not shape or not math.prod(shape) or not self._depth(node):
            return None
        return math.prod(shape) // shape[-1], self._depth(node), shape[-1], block


def names_to_observe(graph: Graph) -> Iterator[str]:
    """Yield the names of results that a run has to show, to know the shapes of all of them."""
    for node in graph.nodes():
        if node.op_type not in ("QuantizeLinear", "Cast"):
            yield from (out.name for out in node.outputs if out.name)


def with_codes(graph: Graph, seen: Mapping[str, Seen]) -> dict[str, Seen]:
    """Add what a run does not hand out: results of QuantizeLinear and Cast look like their input."""
    found = dict(seen)
    for node in graph.nodes("QuantizeLinear", "Cast"):
        value, out = node.inputs[0], node.outputs[0]
        tensor = graph.tensor(value)
        look = found.get("" if value is None else value.name or "")
        if tensor is not None:
            shape: Shape | None = tuple(int(n) for n in tensor.shape.numpy())
        else:
            shape = None if look is None else look.shape
        if shape is not None:
            found[out.name or ""] = Seen(shape, np.dtype(np.float32))
    return found
