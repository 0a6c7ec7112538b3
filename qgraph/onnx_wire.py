"""Large weights inside a model file, read and written without holding the file in memory.

Parsing a message copies every weight into it, and a message must be whole in memory before it is
written. Here the file is mapped and the weights are looked at where they lie.

Source: https://protobuf.dev/programming-guides/encoding/ for the wire format, onnx.proto for the
field numbers.
"""

import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from qgraph.lazy import release

# Files and weights below these sizes are not worth the trouble.
MAPPED_FILE_BYTES = 64 << 20
MAPPED_WEIGHT_BYTES = 64 << 10

# Field numbers in onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def read(path: Path) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]] | None:
    """Read a model file; its large initializers stay in the mapped file.

    Returns:
        The model, in which those initializers have no data, and by name what they are. None where
        there are none, or the file is not what was expected: then it has to be parsed as a whole,
        which also finds out what is wrong with it.
    """
    if path.stat().st_size < MAPPED_FILE_BYTES or sys.byteorder != "little":
        return None
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        light, heavy = _split(memoryview(mapped))
        proto = onnx.load_model_from_string(light)
    except (DecodeError, ValueError, IndexError, RecursionError, TypeError):
        return None
    named = {tensor.name or "": tensor for tensor in heavy}
    if not heavy or len(named) < len(heavy):
        return None
    return proto, named


def write(proto: onnx.ModelProto, tensors: list[ir.TensorProtocol], file: BinaryIO) -> None:
    """Write a model with further initializers, one of which is in memory at a time.

    Args:
        proto: The model without them.
        tensors: Of types that are stored as raw data.
        file: Where to.
    """
    graph = proto.graph.SerializeToString()
    rest = onnx.ModelProto()
    rest.CopyFrom(proto)
    rest.ClearField("graph")
    heads = [_head(tensor) for tensor in tensors]
    bodies = [len(head) + tensor.nbytes for head, tensor in zip(heads, tensors, strict=True)]
    size = len(graph) + sum(len(_opening(_INITIALIZER, body)) + body for body in bodies)
    file.write(rest.SerializeToString())
    file.write(_opening(_GRAPH, size))
    file.write(graph)
    for head, body, tensor in zip(heads, bodies, tensors, strict=True):
        file.write(_opening(_INITIALIZER, body))
        file.write(head)
        data = tensor.tobytes()
        if len(data) != tensor.nbytes:
            raise ValueError(f"{tensor.name!r} has {len(data)} bytes, not {tensor.nbytes}")
        file.write(data)
        if isinstance(tensor, ir.Tensor | ir.ExternalTensor):
            release(tensor.numpy())


# -- reading -----------------------------------------------------------------------------------


def _split(data: memoryview) -> tuple[bytes, list[ir.TensorProtocol]]:
    """Return the model without the data of its large initializers, and these."""
    parts: list[bytes] = []
    heavy: list[ir.TensorProtocol] = []
    for number, kind, start, content, end in _fields(data, 0, len(data)):
        if number != _GRAPH or kind != _LENGTH:
            parts.append(bytes(data[start:end]))
            continue
        graph = b"".join(_graph_parts(data, content, end, heavy))
        parts += [_opening(_GRAPH, len(graph)), graph]
    return b"".join(parts), heavy


def _graph_parts(
    data: memoryview, begin: int, stop: int, heavy: list[ir.TensorProtocol]
) -> Iterator[bytes]:
    for number, kind, start, content, end in _fields(data, begin, stop):
        found = None
        if number == _INITIALIZER and kind == _LENGTH and end - content >= MAPPED_WEIGHT_BYTES:
            found = _mapped(data, content, end)
        if found is None:
            yield bytes(data[start:end])
            continue
        tensor, head = found
        heavy.append(tensor)
        yield _opening(_INITIALIZER, len(head)) + head


def _mapped(data: memoryview, begin: int, stop: int) -> tuple[ir.TensorProtocol, bytes] | None:
    """Return an initializer as a view of the file, and its message without data."""
    parts, raw = [], None
    for number, kind, start, content, end in _fields(data, begin, stop):
        if number == _RAW_DATA and kind == _LENGTH:
            raw = data[content:end]
        else:
            parts.append(bytes(data[start:end]))
    head = b"".join(parts)
    proto = onnx.TensorProto.FromString(head)
    entries = [text for entry in proto.metadata_props for text in (entry.key, entry.value)]
    if bytes in map(type, (proto.name, proto.doc_string, *entries)):
        raise DecodeError("a text is not UTF-8")
    if raw is None or proto.data_location != onnx.TensorProto.DEFAULT:
        return None
    dtype = ir.DataType(proto.data_type)
    if dtype == ir.DataType.STRING or dtype.bitwidth < 8:
        return None
    # Raises ValueError where the sizes do not fit.
    array: np.ndarray[Any, Any] = np.frombuffer(raw, dtype.numpy()).reshape(tuple(proto.dims))
    tensor = ir.Tensor(array, dtype=dtype, name=proto.name, doc_string=proto.doc_string or None)
    tensor.metadata_props.update({entry.key: entry.value for entry in proto.metadata_props})
    return tensor, head


def _fields(data: memoryview, start: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield number, wire type, start, start of the content and end of each field.

    Raises:
        ValueError: This is no message.
    """
    while start < stop:
        tag, at = _varint(data, start, stop)
        number, kind = tag >> 3, tag & 7
        content = at
        if kind == _VARINT:
            _, end = _varint(data, at, stop)
        elif kind == _LENGTH:
            length, content = _varint(data, at, stop)
            end = content + length
        elif kind in (_FIXED64, _FIXED32):
            end = at + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError(f"wire type {kind}")
        if end > stop or number == 0:
            raise ValueError("a field ends behind its message")
        yield number, kind, start, content, end
        start = end


def _varint(data: memoryview, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has no end")


# -- writing -----------------------------------------------------------------------------------


def _head(tensor: ir.TensorProtocol) -> bytes:
    """Return everything of an initializer's message up to its data."""
    proto = onnx.TensorProto(name=tensor.name, data_type=int(tensor.dtype))
    proto.dims.extend(tensor.shape.numpy())
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    for key, value in tensor.metadata_props.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString() + _opening(_RAW_DATA, tensor.nbytes)


def _opening(number: int, length: int) -> bytes:
    """Return what stands in front of a field of `length` bytes."""
    return _number(number << 3 | _LENGTH) + _number(length)


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
