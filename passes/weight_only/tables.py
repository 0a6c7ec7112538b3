"""Tables of which Gather reads rows, such as those of embeddings."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.encoding import Encoding, Spec, dequantize
from qgraph.facts import QuantizedWeight
from qgraph.graph import Graph, Node, Value
from qgraph.lazy import release
from qgraph.passes.weight_forms import put
from qgraph.passes.weight_forms.gather import gather_product
from qgraph.passes.weight_only.layers import Layer
from qgraph.passes.weight_only.solve import Settings, Solution
from qgraph.passes.weight_only.write import form
from qgraph.passes.weights.grid import RangeSearch, fit, round_to
from qgraph.pipeline import Reject

Array = NDArray[Any]
# Rows that are quantized at a time: a vocabulary's table is large.
_ROWS = 4096
# From here on steps are so fine that narrower ranges win nothing.
_FINE_BITS = 8


@dataclass(eq=False)
class Table:
    """y = table[indices].

    Attributes:
        value: The table, [V, H].
        nodes: The Gathers.
        head: The layer that multiplies by the transposed table, if one does.
        product: Name of its node.
    """

    value: Value
    nodes: list[Node]
    head: Layer | None = None
    product: str = ""

    @property
    def name(self) -> str:
        """Name of the first node."""
        return self.nodes[0].name or ""

    def read_in_float(self, graph: Graph) -> str | None:
        """Say who else reads the table, or None."""
        others = [n for n in graph.readers(self.value) if not graph.is_standard(n, "Gather")]
        if not others:
            return None
        reader = others[0]
        while graph.is_standard(reader, "Transpose") and graph.readers(reader.outputs[0]):
            reader = graph.readers(reader.outputs[0])[0]
        return (
            f"its table is also read by {reader.op_type} {reader.name}, which needs it in float: "
            "a second copy would only add to it; weight_only.head=true quantizes a head too"
        )


def find_tables(
    graph: Graph,
    layers: Iterable[Layer],
    tied: Mapping[Layer, Value],
    *,
    exclude: Iterable[str],
    least: int,
) -> tuple[list[Table], dict[str, str]]:
    """Find the tables to quantize.

    Args:
        graph: The graph, before its layers are written.
        layers: Layers that are quantized. Those that multiply by a transposed copy of a table, as
            exporters write tied weights, count as its head.
        tied: Tables that layers multiply by; see `tied_tables`.
        exclude: Globs of node names and operators that stay in float.
        least: Tables with fewer elements stay in float.

    Returns:
        The tables; and of all other Gathers of constants of floats why they stay, by name.
    """
    tables: dict[Value, Table] = {}
    refused: dict[str, str] = {}
    patterns = tuple(exclude)
    for node in graph.walk():
        value = node.inputs[0] if graph.is_standard(node, "Gather") else None
        tensor = graph.tensor(value)
        if value is None or tensor is None or not tensor.dtype.is_floating_point():
            continue
        reason = _refusal(graph, node, tensor, patterns, least)
        if reason is not None:
            refused[node.name or ""] = reason
        elif value in tables:
            tables[value].nodes.append(node)
        else:
            tables[value] = Table(value, [node])
    for layer in layers:
        copied = (v for v in tables if layer not in tied and _is_copy(graph, v, layer))
        value = tied.get(layer) or next(copied, None)
        if value in tables:
            tables[value].head, tables[value].product = layer, layer.name
    # A Gather that is left alone needs the table in float: then it stays that for all.
    for value in [v for v in tables if any(n.name in refused for n in graph.readers(v))]:
        for node in tables.pop(value).nodes:
            refused[node.name or ""] = "another node needs its table in float"
    return list(tables.values()), refused


def _is_copy(graph: Graph, value: Value, layer: Layer) -> bool:
    table = graph.array(value)
    if table is None or table.shape[::-1] != layer.shape:
        return False
    matrix = layer.matrix(graph)
    starts = range(0, len(table), _ROWS)
    same = all(np.array_equal(table[a : a + _ROWS], matrix[:, a : a + _ROWS].T) for a in starts)
    release(table)
    layer.release(graph)
    return same


def _refusal(
    graph: Graph, node: Node, tensor: ir.TensorProtocol, exclude: tuple[str, ...], least: int
) -> str | None:
    if node.graph is not graph.main:
        return "inside the body of another node"
    for pattern in exclude:
        if fnmatchcase(node.name or "", pattern) or fnmatchcase(node.op_type, pattern):
            return f"excluded by {pattern!r}"
    if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"its table is {tensor.dtype.name.lower()}"
    if len(tensor.shape) != 2 or graph.attribute(node, "axis", 0) not in (0, -2):
        return "it does not gather rows of a table"
    if tensor.size < least:
        return f"its table {list(tensor.shape.numpy())} has fewer than {least} elements"
    return None


def quantize_table(
    graph: Graph, table: Table, bits: int, settings: Settings, layers: Mapping[Layer, Solution]
) -> Solution:
    """Quantize a table in groups along its rows.

    It takes the codes of a head that multiplies by it, if they are of the same kind; else it is
    rounded to nearest, below 8 bits in the share of each range that has the least error.

    Args:
        graph: The graph.
        table: The table.
        bits: Of its codes.
        settings: Symmetry, group length and search are those of the layers.
        layers: What they became.
    """
    start = time.perf_counter()
    array = graph.array(table.value)
    assert array is not None
    kind = settings.spec.dtype.rstrip("2348")
    spec = replace(settings.spec, dtype=f"{kind}{bits}")
    block = (1, spec.block)
    shared = None if table.head is None else layers[table.head]
    if shared is not None and shared.scale is None and isinstance(shared.weight, QuantizedWeight):
        encoding = shared.weight.encoding
        if encoding.dtype == spec.dtype and encoding.block[::-1] == block:
            taken = Encoding(spec.dtype, encoding.scale.T, encoding.zero_point.T, block)
            codes = shared.weight.codes.T
            loss = _loss(array, codes, taken)
            note = f"the codes are those of {table.product}"
            return Solution(
                QuantizedWeight(codes, taken, loss), None, None, loss, shared.method, note
            )
    method, search = "clipped", settings.gptq.search
    if bits >= _FINE_BITS or len(search.shares) == 1:
        method, search = "rtn", RangeSearch(signed=search.signed)
    codes, taken = _rounded(array, spec, search)
    loss, seconds = _loss(array, codes, taken), time.perf_counter() - start
    return Solution(QuantizedWeight(codes, taken, loss), None, None, loss, method, seconds=seconds)


def write_table(
    graph: Graph, table: Table, solution: Solution, forms: tuple[str, ...]
) -> str | None:
    """Put a quantized table in the place of its Gathers.

    Args:
        graph: The graph, its layers written.
        table: The table.
        solution: What it became.
        forms: Names of forms, the one the target likes best first.

    Returns:
        None, or why none of the forms takes it.
    """
    products = [n for n in graph.nodes() if solution.note and n.name == table.product]
    writers = [partial(gather_product, product=product) for product in products]
    writers += [partial(form(name), table=solution.weight) for name in forms]
    for node in table.nodes:
        reasons = []
        for write in writers:
            value = write(graph, node)
            if not isinstance(value, Reject):
                put(graph, node, value)
                break
            reasons.append(value.reason)
        else:
            return "; ".join(dict.fromkeys(reasons))
    return None


def tied_tables(layers: Iterable[Layer]) -> dict[Layer, Value]:
    """Return the tables that layers multiply by, transposed."""
    found = {}
    for layer in layers:
        node = layer.weight.producer()
        if node is not None and len(layer.shape) == 2 and node.inputs[0] is not None:
            found[layer] = node.inputs[0]
    return found


def still_in_float(graph: Graph, tied: Mapping[Layer, Value]) -> list[str]:
    """Say of which weights, now in few bits, there is a float copy for a Gather."""
    return [
        f"{name}: {value.name} stays in float beside it, for {', '.join(names)}"
        for name, value in ((layer.name, value) for layer, value in tied.items())
        if (names := [n.name or "" for n in graph.readers(value) if n.op_type == "Gather"])
    ]


def _rounded(array: Array, spec: Spec, search: RangeSearch) -> tuple[Array, Encoding]:
    codes, scales, zeros = [], [], []
    for at in range(0, len(array), _ROWS):
        columns = np.ascontiguousarray(array[at : at + _ROWS].T, np.float32)
        encoding = fit(columns, spec, search)
        codes.append(round_to(columns, encoding, spec).T)
        scales.append(encoding.scale.T)
        zeros.append(encoding.zero_point.T)
    block = (1, spec.block)
    taken = Encoding(spec.dtype, np.concatenate(scales), np.concatenate(zeros), block)
    return np.concatenate(codes), taken


def _loss(array: Array, codes: Array, encoding: Encoding) -> float:
    """Return the squared error relative to the squared size."""
    error = size = 0.0
    for at in range(0, len(array), _ROWS):
        rows = slice(at, at + _ROWS)
        part = replace(encoding, scale=encoding.scale[rows], zero_point=encoding.zero_point[rows])
        values = array[rows].astype(np.float32)
        error += float(np.square(values - dequantize(codes[rows], part), dtype=np.float64).sum())
        size += float(np.square(values, dtype=np.float64).sum())
    return error / size if size > 0 else 0.0
