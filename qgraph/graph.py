"""The graph that passes read and rewrite: a thin layer over onnx-ir, which owns mutation.

Only this module and `onnx_io` import onnx_ir's model classes for anything but type names; passes
use the functions here, so that names stay unique, interfaces stay fixed and facts stay known.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.constants import constant_tensor
from qgraph.facts import Facts
from qgraph.runtime.backend import TensorInfo
from qgraph.traversal import bodies, read_only_view, release, walk

if TYPE_CHECKING:
    import networkx as nx

Node = ir.Node
Value = ir.Value
Attribute = int | float | str | Sequence[int] | Sequence[float] | Sequence[str] | ir.Attr

# Domains whose nodes have the meaning that the ONNX specification gives them.
ONNX_DOMAINS = frozenset({"", "ai.onnx"})


class Graph:
    """A model under compilation, with the facts that passes left on it.

    Attributes:
        model: The onnx-ir model.
        facts: What passes found out (see `qgraph.facts`).
        source: The file it came from, or None.
        sparse: Sparse initializers by name, as protobuf messages; onnx-ir can't hold them.
        notes: Messages for the user gathered while loading.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        source: Path | None = None,
        sparse: Mapping[str, Any] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        """Wrap `model`; nothing is copied."""
        self.model = model
        self.facts = Facts()
        self.source = source
        self.sparse = dict(sparse or {})
        self.notes = list(notes)
        self._names: dict[str, int] | None = None

    # -- reading -----------------------------------------------------------------------------

    @property
    def main(self) -> ir.Graph:
        """The outermost graph."""
        return self.model.graph

    @property
    def inputs(self) -> list[Value]:
        """Inputs a caller must feed: graph inputs without a default value."""
        return [v for v in self.main.inputs if not v.is_initializer()]

    @property
    def outputs(self) -> list[Value]:
        """Graph outputs."""
        return list(self.main.outputs)

    def signature(self) -> list[TensorInfo]:
        """Name, type and shape of every input a caller must feed."""
        return [self._info(value) for value in self.inputs]

    def results(self) -> list[TensorInfo]:
        """Name, type and shape of every output."""
        return [self._info(value) for value in self.outputs]

    def _info(self, value: Value) -> TensorInfo:
        return TensorInfo(value.name or "", _type_name(value), self.shape(value) or ())

    @property
    def opset(self) -> int:
        """Version of the default ONNX operator set."""
        return self.model.opset_imports.get("", 0) or self.model.opset_imports.get("ai.onnx", 0)

    @property
    def initializers(self) -> list[Value]:
        """Initializers of the outermost graph."""
        return list(self.main.initializers.values())

    def nodes(self, *op_types: str) -> Iterator[Node]:
        """Yield nodes of the outermost graph, all or of the given standard ops.

        The graph may be rewritten while iterating.
        """
        for node in self.main:
            if not op_types or (node.op_type in op_types and node.domain in ONNX_DOMAINS):
                yield node

    def walk(self) -> Iterator[Node]:
        """Yield every node, those inside If, Loop and Scan bodies included.

        A node's bodies come right behind it.
        """
        yield from walk(self.main)

    def graphs(self) -> Iterator[ir.Graph]:
        """Yield the outermost graph and every subgraph, outer ones first."""
        yield self.main
        for node in walk(self.main):
            for attr in node.attributes.values() if node.attributes else ():
                yield from bodies(attr)

    def array(self, value: Value | None) -> NDArray[Any] | None:
        """Return the value of a constant, or None if `value` is no constant.

        Initializers that are also graph inputs can be overridden by a caller, so they are none.
        Exotic types come as ml_dtypes arrays, 4-bit types unpacked.
        """
        tensor = self.tensor(value)
        return None if tensor is None else tensor.numpy()

    def tensor(self, value: Value | None) -> ir.TensorProtocol | None:
        """Return the tensor behind a constant without decoding it, or None."""
        if value is None or value.is_graph_input():
            return None
        if value.is_initializer():
            return value.const_value
        producer = value.producer()
        return None if producer is None else constant_tensor(producer)

    def scalar(self, value: Value | None) -> float | None:
        """Return a constant of exactly one element as a float, or None."""
        tensor = self.tensor(value)
        if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
            return None
        return float(np.asarray(tensor.numpy(), np.float64).reshape(()))

    def is_constant(self, value: Value | None) -> bool:
        """Whether `value` is known before any input is."""
        return self.tensor(value) is not None

    def readers(self, value: Value) -> list[Node]:
        """Nodes that read `value`, once per input slot, subgraph nodes included."""
        return [use.node for use in value.uses()]

    def only_reader(self, value: Value) -> Node | None:
        """The node that alone reads `value`; None if there are more, or it is a graph output."""
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return None
        return uses[0].node

    @staticmethod
    def attribute(node: Node, name: str, default: Any = None) -> Any:
        """Return a plain attribute value: int, float, str, tuple, tensor; `default` if absent.

        Reference attributes (inside functions) have no value here and give `default`.
        """
        attr = node.attributes.get(name)
        if attr is None or attr.is_ref():
            return default
        return attr.value

    @staticmethod
    def shape(value: Value | None) -> tuple[int | str | None, ...] | None:
        """Return the shape with ints, symbol names and None for unknown; None if no rank."""
        if value is None or value.shape is None:
            return None
        return tuple(d if isinstance(d, int) else d.value for d in value.shape)

    @staticmethod
    def rank(value: Value | None) -> int | None:
        """Return the number of axes, or None if unknown."""
        return None if value is None or value.shape is None else len(value.shape)

    @staticmethod
    def is_standard(node: Node, *op_types: str) -> bool:
        """Whether `node` belongs to the ONNX standard and is one of `op_types` (any if none)."""
        return node.domain in ONNX_DOMAINS and (not op_types or node.op_type in op_types)

    # -- rewriting ---------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """Return a value or node name that nothing in the model has yet."""
        if self._names is None:
            self._names = dict.fromkeys(self._all_names(), 0)
        if hint not in self._names:
            self._names[hint] = 0
            return hint
        # The count goes on where it stopped, so that many nodes of one name stay linear.
        count, name = self._names[hint], hint
        while name in self._names:
            count += 1
            name = f"{hint}_{count}"
        self._names[hint], self._names[name] = count, 0
        return name

    def name_nodes(self) -> None:
        """Give a name to every node that has none or shares one; ONNX demands neither.

        Plans and reports go by node name, so passes that write them call this first.
        """
        seen: set[str] = set()
        for node in self.walk():
            if not node.name or node.name in seen:
                hint = next((out.name for out in node.outputs if out.name), None)
                node.name = self.fresh(f"{hint}_{node.op_type}" if hint else node.op_type)
            seen.add(node.name)

    def forget_names(self) -> None:
        """Collect names anew at the next `fresh`, after the model was replaced."""
        self._names = None

    def constant(self, hint: str, array: NDArray[Any], dtype: ir.DataType | None = None) -> Value:
        """Add an initializer to the outermost graph and return its value.

        Args:
            hint: Name, made unique.
            array: Data; ml_dtypes arrays keep their type.
            dtype: ONNX type where the array's own does not say it.
        """
        name = self.fresh(hint)
        if dtype is None and isinstance(array, np.ndarray) and array.dtype.kind not in "OSU":
            # The general way takes ten times as long.
            return self._register(ir.Tensor(array, name=name))
        return self._register(ir.tensor(array, dtype=dtype, name=name))

    def lazy_constant(
        self,
        hint: str,
        dtype: np.dtype[Any],
        shape: Sequence[int],
        read: Callable[[], NDArray[Any]],
    ) -> Value:
        """Add an initializer whose array is made anew each time it is looked at, and not kept.

        So a model larger than memory can be written: `onnx_io.save` takes one weight at a time.

        Args:
            hint: Name, made unique.
            dtype: Type of the array; ml_dtypes have ONNX types of their own.
            shape: Its shape.
            read: Makes the array. It must give the same one every time.

        Returns:
            The initializer. Looking at it raises ValueError where `read` gives another type or
            shape.
        """
        kind, lengths = ir.DataType.from_numpy(dtype), tuple(shape)

        def make() -> ir.TensorProtocol:
            array = read()
            if array.dtype != dtype or array.shape != lengths:
                made = f"{array.dtype} {list(array.shape)}"
                raise ValueError(f"{name} became {made}, not {dtype} {list(lengths)}")
            return ir.Tensor(array, dtype=kind, name=name)

        name = self.fresh(hint)
        return self._register(ir.LazyTensor(make, kind, ir.Shape(lengths), name=name))

    def insert(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        *,
        before: Node | None = None,
        after: Node | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        name: str | None = None,
        outputs: int = 1,
        domain: str = "",
        like: Value | None = None,
    ) -> Node:
        """Add a node beside another one, in the same (sub)graph, and return it.

        Args:
            op_type: Operator.
            inputs: Its inputs; None for an omitted optional one.
            before: Node in front of which it stands. Exactly one of `before` and `after`.
            after: Node behind which it stands.
            attributes: Plain Python values.
            name: Hint for the node's name; outputs are called after it.
            outputs: How many outputs it has.
            domain: Operator domain.
            like: Value whose type and shape the first output has.
        """
        place = before if before is not None else after
        if place is None or place.graph is None or (before is not None and after is not None):
            raise ValueError("insert needs exactly one of before= and after=, inside a graph")
        node_name = self.fresh(name or f"{place.name}_{op_type}")
        attrs = ir.convenience.convert_attributes(dict(attributes or {}))
        node = ir.Node(domain, op_type, inputs, attrs, num_outputs=outputs, name=node_name)
        for index, output in enumerate(node.outputs):
            output.name = self.fresh(f"{node_name}_out{index or ''}")
        if like is not None:
            node.outputs[0].type = copy.deepcopy(like.type)
            node.outputs[0].shape = None if like.shape is None else like.shape.copy()
        if before is not None:
            place.graph.insert_before(place, node)
        else:
            place.graph.insert_after(place, node)
        if domain and domain not in self.model.opset_imports:
            self.model.opset_imports[domain] = 1
        return node

    def set_input(self, node: Node, index: int, value: Value | None) -> None:
        """Make one input of `node` read another value."""
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)

    def set_attribute(self, node: Node, name: str, value: Attribute | None) -> None:
        """Set or, with None, remove one attribute."""
        if value is None:
            node.attributes.pop(name, None)
            return
        attr = (
            value if isinstance(value, ir.Attr) else ir.convenience.convert_attribute(name, value)
        )
        node.attributes[name] = attr

    def replace(self, old: Value, new: Value) -> None:
        """Make everything that reads `old` read `new`; graph outputs keep their names and types.

        Where `old` is a graph output and `new` can't take its name (it is a graph input, a
        constant, another graph output, or lives in another graph), an Identity carries it. Where
        `old` is both graph input and graph output, that output stays: its name belongs to both.
        `new` must not be computed from `old`, or the graph would have a cycle.
        """
        if old is new:
            return
        for user, index in list(old.uses()):
            user.replace_input_with(index, new)
        if new.type is None:
            new.type = copy.deepcopy(old.type)
        if new.shape is None and old.shape is not None:
            new.shape = old.shape.copy()
        if not old.is_graph_output() or old.is_graph_input():
            return
        owner = old.graph
        producer = new.producer()
        if (
            producer is None
            or new.is_graph_output()
            or producer.graph is not owner
            or new.name in self._interface_names()
        ):
            new = self._carry(old, new)
        else:
            new.shape = old.shape
            new.type = copy.deepcopy(old.type)
        new.doc_string = old.doc_string
        new.metadata_props.update(old.metadata_props)
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = self.fresh(f"{name}_old")
        new.name = name

    def remove(self, *nodes: Node) -> None:
        """Remove nodes whose outputs nobody reads.

        Raises:
            ValueError: An output is still read or is a graph output.
        """
        for node in nodes:
            if node.graph is not None:
                node.graph.remove(node, safe=True)
                release(node)

    def remove_unread(self, nodes: Iterable[Node]) -> int:
        """Remove those of `nodes`, last one first, that nobody reads any more; return how many."""
        count = 0
        for node in reversed(list(nodes)):
            if node.graph is None or any(
                out.uses() or out.is_graph_output() for out in node.outputs
            ):
                continue
            node.graph.remove(node, safe=True)
            release(node)
            count += 1
        return count

    def drop_unread_initializers(self) -> int:
        """Remove initializers that nobody reads, in every graph; return how many."""
        count = 0
        for graph in self.graphs():
            for name, value in list(graph.initializers.items()):
                if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                    del graph.initializers[name]
                    # Nodes and values form cycles: without this the data would stay until the
                    # garbage collector comes by.
                    value.const_value = None
                    count += 1
        return count

    def view(self) -> "nx.DiGraph[Node]":
        """Return a networkx view of the outermost graph: nodes, and edges from writer to reader.

        A subgraph's reads count as reads of the node that holds it. The view is a snapshot:
        ask it questions, rewrite through this class.
        """
        return read_only_view(self.main)

    def _register(self, tensor: ir.TensorProtocol) -> Value:
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.main.register_initializer(value)
        return value

    def _carry(self, old: Value, new: Value) -> Value:
        assert old.graph is not None
        node = ir.Node("", "Identity", [new], name=self.fresh(f"{old.name}_identity"))
        carried = node.outputs[0]
        carried.name = self.fresh(f"{old.name}_carried")
        carried.type, carried.shape = copy.deepcopy(old.type), old.shape
        old.graph.append(node)
        return carried

    def _interface_names(self) -> set[str | None]:
        return {v.name for v in self.main.inputs} | {v.name for v in self.main.outputs}

    def _all_names(self) -> set[str]:
        names: set[str] = set(self.sparse)
        for graph in self.graphs():
            names.update(v.name for v in graph.inputs if v.name)
            names.update(graph.initializers)
            for node in graph:
                if node.name:
                    names.add(node.name)
                names.update(out.name for out in node.outputs if out.name)
        return names


def _type_name(value: Value) -> str:
    """ONNX type name as engines spell it: float32, int64, seq(float32)."""
    name = {"FLOAT": "float32", "DOUBLE": "float64"}.get(
        value.dtype.name if value.dtype else "", value.dtype.name.lower() if value.dtype else ""
    )
    if isinstance(value.type, ir.SequenceType):
        return f"seq({name})"
    return f"optional({name})" if isinstance(value.type, ir.OptionalType) else name
