"""Messages for onnx's own C++ library, without the large weights, and shape inference by it."""

import logging
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import onnx_ir as ir

from qgraph.collector import collector_paused
from qgraph.errors import ModelError
from qgraph.graph import Graph
from qgraph.onnx_checks import first_line

# Weights above this many bytes don't travel to the C++ library. Shapes, axes and scales that
# inference and conversion read are far smaller.
_LIGHT_BYTES = 1000
# Symbols that shape inference makes up start with this. It counts from 0 in every run.
_GENERATED = "unk__"


def infer_shapes(graph: Graph) -> str | None:
    """Fill in types and shapes that onnx's shape inference finds, in subgraphs too; never fails.

    A known dimension is never forgotten, and the types and shapes of inputs and outputs stay.

    Returns:
        None, or one line that says why nothing could be inferred.
    """
    with collector_paused():
        _forget_generated(graph)
        try:
            inferred = onnx.shape_inference.infer_shapes(light_proto(graph), data_prop=True)
        except Exception as error:  # noqa: BLE001 - a C++ library; any failure only loses shapes
            return f"shape inference failed: {first_line(error)}"
        fill_in(graph.main, inferred.graph)
    return None


def light_proto(graph: Graph) -> onnx.ModelProto:
    """Serialize without the data of large and sparse weights, which become typed inputs."""
    main = graph.main
    initializers, inputs = list(main.initializers.values()), list(main.inputs)
    heavy = [
        v for v in initializers if v.const_value is not None and v.const_value.nbytes > _LIGHT_BYTES
    ]
    for value in heavy:
        main.initializers.pop(value.name or "")
    main.inputs.extend(value for value in heavy if not value.is_graph_input())
    try:
        proto = serialize(graph)
    finally:
        main.inputs.clear()
        main.inputs.extend(inputs)
        main.initializers.clear()
        for value in initializers:
            main.register_initializer(value)
    for name, sparse in graph.sparse.items():
        info = onnx.helper.make_tensor_value_info(name, sparse.values.data_type, list(sparse.dims))
        proto.graph.input.append(info)
    del proto.graph.sparse_initializer[:]
    for tensor in proto.graph.initializer:
        # The library would look for the file of a small external tensor in the wrong folder.
        source = main.initializers[tensor.name].const_value
        if tensor.data_location == onnx.TensorProto.EXTERNAL and source is not None:
            inline(tensor, source)
    return proto


def split_proto(graph: Graph, above: int) -> tuple[onnx.ModelProto, list[ir.TensorProtocol]]:
    """Serialize without the main graph's initializers of more than `above` bytes; return these."""
    heavy: dict[ir.Value, ir.TensorProtocol] = {}
    for value in graph.initializers:
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > above and tensor.dtype != ir.DataType.STRING:
            heavy[value] = tensor
    try:
        for value in heavy:
            value.const_value = ir.Tensor(np.zeros(0, np.uint8), name=value.name)
        proto = serialize(graph)
    finally:
        for value, tensor in heavy.items():
            value.const_value = tensor
            tensor.name = value.name
    names = {value.name for value in heavy}
    light = [tensor for tensor in proto.graph.initializer if tensor.name not in names]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(light)
    return proto, list(heavy.values())


def without_initializers(proto: onnx.ModelProto, names: Container[str]) -> onnx.ModelProto:
    """Return a copy in which initializers are inputs of their type and shape instead."""
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    kept = [t for t in light.graph.initializer if t.name not in names]
    known = {value.name for value in light.graph.input}
    light.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in light.graph.initializer
        if t.name in names and t.name not in known
    )
    del light.graph.initializer[:]
    light.graph.initializer.extend(kept)
    return light


def inline(tensor: onnx.TensorProto, source: ir.TensorProtocol) -> None:
    """Put the data of an external tensor into its message."""
    tensor.raw_data = source.tobytes()
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def serialize(graph: Graph) -> onnx.ModelProto:
    """Turn a graph into a message; external weights stay references.

    Raises:
        ModelError: Something in the graph has no place in a message, as text that is not UTF-8.
    """
    try:
        with collector_paused():
            proto = ir.serde.serialize_model(graph.model)
    except ir.serde.SerdeError as error:
        raise ModelError(f"can't write the graph: {first_line(error)}") from error
    proto.graph.sparse_initializer.extend(graph.sparse.values())
    return proto


@contextmanager
def quiet_onnx_ir() -> Iterator[None]:
    """Keep onnx-ir's warnings, which users can't act on, from the terminal."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _forget_generated(graph: Graph) -> None:
    """Forget the symbols of an earlier run: this one may know better, and numbers them anew."""
    for each in graph.graphs():
        for node in each:
            for value in node.outputs:
                shape = value.shape
                if shape is None or value.is_graph_output():
                    continue
                if any(not isinstance(dim, int) and _is_generated(dim.value) for dim in shape):
                    value.shape = ir.Shape(
                        dim if isinstance(dim, int) or not _is_generated(dim.value) else None
                        for dim in shape
                    )


def _is_generated(symbol: str | None) -> bool:
    return symbol is not None and symbol.startswith(_GENERATED)


def fill_in(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    """Take over the types and shapes of a message with the same nodes in the same order."""
    known = {info.name: info for info in proto.value_info}
    known.update({info.name: info for info in proto.output})
    for node, message in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            info = known.get(value.name or "")
            if info is not None:
                _refine(value, info)
        for attr in message.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                fill_in(node.attributes[attr.name].as_graph(), attr.g)


def _refine(value: ir.Value, info: onnx.ValueInfoProto) -> None:
    shape = value.shape
    settled = value.is_graph_output() or (shape is not None and shape.is_static())
    if value.type is not None and settled:
        return
    found, dims = _type_and_dims(info.type)
    if value.type is None:
        value.type = found
    if dims is None or found != value.type:
        return
    if shape is None:
        value.shape = ir.Shape(dims)
    elif len(shape) == len(dims):
        # A new shape, since the old one may be shared or frozen.
        value.shape = ir.Shape(
            old if isinstance(old, int) or (old.value and not isinstance(new, int)) else new
            for old, new in zip(shape, dims, strict=True)
        )


def _type_and_dims(
    proto: onnx.TypeProto,
) -> tuple[ir.TypeProtocol | None, Sequence[int | str | None] | None]:
    if not proto.HasField("tensor_type"):
        shape = ir.serde.deserialize_type_proto_for_shape(proto)
        dims = None if shape is None else [d if isinstance(d, int) else d.value for d in shape]
        return ir.serde.deserialize_type_proto_for_type(proto), dims
    # Nearly every value is a tensor, and the general way takes three times as long.
    tensor = proto.tensor_type
    found = ir.TensorType(ir.DataType(tensor.elem_type)) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return found, None
    return found, [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in tensor.shape.dim
    ]
