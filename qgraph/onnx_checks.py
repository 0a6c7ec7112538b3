"""Checks on a parsed ONNX model before anything trusts it: nesting, sizes, paths, validity."""

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError

from qgraph.errors import ModelError

# Subgraphs nested deeper than this would exhaust Python's stack on the way in.
MAX_NESTING = 50


def first_line(error: BaseException) -> str:
    """Return the first line of the error that started it all; libraries wrap theirs in layers."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def check(proto: onnx.ModelProto, *, where: str, path: Path | None = None) -> None:
    """Run onnx's checker.

    Args:
        proto: The model.
        where: What to call it in messages.
        path: Its file, where it has one: the checker then reads it again in C++, which can take
            external data and more than 2 GB.

    Raises:
        ModelError: The model is invalid; the message is the checker's first line.
    """
    if not proto.HasField("graph") or not (proto.opset_import or proto.graph.node):
        raise ModelError("this is not an ONNX model", where=where)
    try:
        onnx.checker.check_model(str(path) if path is not None else proto)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"invalid model: {first_line(error)}", where=where) from error
    except (ValueError, RuntimeError, TypeError, EncodeError) as error:
        raise ModelError(f"can't check the model: {first_line(error)}", where=where) from error


def settle_names(proto: onnx.ModelProto, where: str) -> bool:
    """Spell the default domain as '', and refuse names that are no text.

    Returns:
        Whether a node had the domain `ai.onnx`, which onnx's checker does not know.

    Raises:
        ModelError: A node or value has a name that protobuf gives as bytes.
    """
    renamed = False
    nodes = [*proto.graph.node, *(node for f in proto.functions for node in f.node)]
    while nodes:
        for node in nodes:
            names = (node.name, node.op_type, node.domain, *node.input, *node.output)
            if bytes in map(type, names):
                bad = next(name for name in names if isinstance(name, bytes))
                raise ModelError(f"a name is not UTF-8 text: {bad!r}", where=where)
            if node.domain == "ai.onnx":
                node.domain, renamed = "", True
        nodes = [
            inner
            for node in nodes
            for attr in node.attribute
            for body in bodies_of(attr)
            for inner in body.node
        ]
    return renamed


def check_nesting(proto: onnx.ModelProto, where: str) -> None:
    """Refuse subgraphs within subgraphs beyond `MAX_NESTING` levels.

    Raises:
        ModelError: They are nested deeper.
    """
    nodes = [*proto.graph.node, *(node for f in proto.functions for node in f.node)]
    depth = 1
    while nodes:
        bodies = [body for node in nodes for attr in node.attribute for body in bodies_of(attr)]
        nodes = [node for body in bodies for node in body.node]
        depth += 1
        if bodies and depth > MAX_NESTING:
            raise ModelError(f"subgraphs are nested deeper than {MAX_NESTING}", where=where)


def check_tensors(proto: onnx.ModelProto, where: str, folder: Path | None) -> None:
    """Check what onnx's checker does not: surplus data, unknown types, external files.

    Args:
        proto: The model.
        where: What to call it in messages.
        folder: Folder of the model's file, resolved; None where it has no file.

    Raises:
        ModelError: A tensor's data does not fit its shape, or its external data is missing, too
            short, or outside `folder`.
    """
    for tensor in tensors_of(proto):
        size = _tensor_bytes(tensor, where)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, size, where, folder)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != size:
            raise ModelError(
                f"tensor {tensor.name!r} has {len(tensor.raw_data)} bytes of data, "
                f"its type and shape need {size}",
                where=where,
            )


def bodies_of(attr: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """Return the subgraphs in one attribute."""
    if attr.type == onnx.AttributeProto.GRAPH or attr.HasField("g"):
        return [attr.g]
    return list(attr.graphs)


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every dense tensor: initializers and attributes, in subgraphs and functions too."""
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        for graph in graphs:
            yield from graph.initializer
            nodes.extend(graph.node)
        graphs = []
        for node in nodes:
            for attr in node.attribute:
                if attr.HasField("t"):
                    yield attr.t
                yield from attr.tensors
                graphs.extend(bodies_of(attr))
        nodes = []


def _tensor_bytes(tensor: onnx.TensorProto, where: str) -> int:
    try:
        dtype = ir.DataType(tensor.data_type)
        bits = 0 if dtype == ir.DataType.STRING else dtype.bitwidth
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"tensor {tensor.name!r} has the unknown data type {tensor.data_type}", where=where
        ) from error
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} has a negative dimension", where=where)
    return (math.prod(tensor.dims) * bits + 7) // 8


def _check_external(tensor: onnx.TensorProto, size: int, where: str, folder: Path | None) -> None:
    if folder is None:
        raise ModelError(
            f"tensor {tensor.name!r} has external data, but the model has no folder",
            where=where,
            fix="load the model from its file",
        )
    info = {entry.key: entry.value for entry in tensor.external_data}
    location = info.get("location", "")
    path = _inside(folder, location)
    if path is None:
        raise ModelError(
            f"external data of {tensor.name!r} leaves the model's folder: {location!r}",
            where=where,
            fix="move the data file beside the model",
        )
    if not path.is_file():
        raise ModelError(
            f"external data file {location!r} of {tensor.name!r} is missing", where=where
        )
    try:
        offset = int(info.get("offset") or 0)
        length = int(info.get("length") or size)
    except ValueError as error:
        raise ModelError(f"external data of {tensor.name!r} is malformed", where=where) from error
    if offset < 0 or length != size:
        raise ModelError(
            f"external data of {tensor.name!r} is at offset {offset} with {length} bytes, "
            f"its type and shape need {size}",
            where=where,
        )
    stat = path.stat()
    if offset + size > stat.st_size:
        raise ModelError(
            f"external data file {location!r} has {stat.st_size} bytes, "
            f"{tensor.name!r} needs {offset + size}",
            where=where,
            fix="the file is truncated; copy it again",
        )
    # Neither onnx nor onnx-ir reads through links: they can lead to any file.
    link = "is a symbolic link" if (folder / location).is_symlink() else ""
    link = link or ("has several hard links" if stat.st_nlink > 1 else "")
    if link:
        raise ModelError(
            f"external data file {location!r} {link}",
            where=where,
            fix="copy the file instead of linking it",
        )


def _inside(folder: Path, location: str) -> Path | None:
    if not location or "\0" in location or Path(location).is_absolute():
        return None
    try:
        path = (folder / location).resolve()
    except (OSError, RuntimeError):  # a loop of symbolic links
        return None
    return path if path.is_relative_to(folder) else None
