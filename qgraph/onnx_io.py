"""Reading and writing ONNX files; protobuf messages are handled here and in qgraph.onnx_*."""

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from qgraph import onnx_wire
from qgraph.collector import collector_paused
from qgraph.errors import ArtifactError, ModelError
from qgraph.graph import Graph
from qgraph.onnx_checks import (
    check,
    check_nesting,
    check_tensors,
    first_line,
    settle_names,
    tensors_of,
)
from qgraph.onnx_convert import (
    infer_shapes,
    inline,
    quiet_onnx_ir,
    serialize,
    split_proto,
    without_initializers,
)
from qgraph.onnx_sparse import take_sparse
from qgraph.onnx_upgrade import upgrade_opset

__all__ = [
    "check",
    "external_bytes",
    "from_proto",
    "infer_shapes",
    "load",
    "peek",
    "save",
    "to_proto",
    "upgrade_opset",
    "weight_bytes",
]

# Protobuf can't hold 2 GB; weights above this go to an external data file. Well below the limit,
# because nodes and names need room too.
EXTERNAL_ABOVE_BYTES = 1_500_000_000
# Smaller weights stay in the model file even when the others leave it.
_EXTERNAL_EACH_BYTES = 1024


def load(source: str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model | Any) -> Graph:
    """Read a model; weights in external files stay on disk until they are needed.

    Args:
        source: A path, the bytes of a model, an `onnx.ModelProto`, an `onnx_ir.Model`, or an
            onnx-graphsurgeon `Graph`.

    Returns:
        The graph. It shares memory with `source` where that is an object.

    Raises:
        ModelError: The file is missing, truncated, not ONNX, invalid, or refers to external
            data that is missing, too short, or outside the model's folder.
    """
    if isinstance(source, Graph):
        return source
    if isinstance(source, ir.Model):
        return Graph(source)
    if isinstance(source, bytes):
        return from_proto(_parse(source, "<bytes>"), where="<bytes>")
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        return from_proto(proto, where="<ModelProto>")
    if type(source).__module__.startswith("onnx_graphsurgeon"):
        import onnx_graphsurgeon as gs

        return from_proto(gs.export_onnx(source), where="<graphsurgeon graph>")
    if isinstance(source, str | os.PathLike):
        return _load_file(Path(source))
    raise ModelError(
        f"can't load a model from {type(source).__name__}",
        fix="pass a path, bytes, onnx.ModelProto, onnx_ir.Model or onnx_graphsurgeon.Graph",
    )


def from_proto(
    proto: onnx.ModelProto,
    *,
    where: str,
    base_dir: Path | None = None,
    source: Path | None = None,
    mapped: Mapping[str, ir.TensorProtocol] | None = None,
) -> Graph:
    """Turn a parsed model into a graph, after checking it.

    Args:
        proto: The model.
        where: What to call it in messages.
        base_dir: Where its external data lies.
        source: The file that it was read from.
        mapped: Its initializers whose data is elsewhere, by name; their messages have none.

    Raises:
        ModelError: The model is invalid.
    """
    check_nesting(proto, where)
    renamed = settle_names(proto, where)
    check_tensors(proto, where, base_dir)
    if mapped:
        check(without_initializers(proto, mapped), where=where)
    else:
        check(proto, where=where, path=None if renamed else source)
    notes: list[str] = []
    sparse = take_sparse(proto)
    model = _deserialize(proto, where)
    for name, data in (mapped or {}).items():
        model.graph.initializers[name].const_value = data
    for tensor in tensors_of(proto):
        if tensor.metadata_props:
            # onnx-ir has its own copy by now, and would write both.
            del tensor.metadata_props[:]
    inputs = [v for v in model.graph.inputs if v.name not in sparse]
    if len(inputs) != len(model.graph.inputs):
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs)
    if base_dir is not None:
        for graph in [model.graph, *(function.graph for function in model.functions.values())]:
            ir.external_data.set_base_dir(graph, base_dir)
    if proto.training_info:
        notes.append("training information is left out: an engine for inference has no use for it")
    return Graph(model, source=source, sparse=sparse, notes=notes)


def peek(path: str | os.PathLike[str]) -> Graph:
    """Read a model to ask about its structure; it is not checked, which takes most of the time.

    Meant for files that an engine has opened. Constants may be asked for only where they lie in
    the file itself.

    Raises:
        ModelError: The file is missing, truncated or not ONNX.
    """
    file = _model_file(Path(path))
    proto = _parsed(file)
    check_nesting(proto, str(file))
    sparse = take_sparse(proto)
    return Graph(_deserialize(proto, str(file)), source=file, sparse=sparse)


def operators(path: Path) -> frozenset[str]:
    """Return the operators of a file, those in bodies included; large weights stay on disk.

    Raises:
        ModelError: The file is missing, truncated or not ONNX.
    """
    proto, _ = _mapped(path)
    check_nesting(proto, str(path))
    waiting: list[Any] = [proto.graph, *proto.functions]
    found: set[str] = set()
    while waiting:
        nodes = waiting.pop().node
        found.update(node.op_type for node in nodes)
        for attribute in (each for node in nodes for each in node.attribute):
            waiting += [attribute.g] if attribute.HasField("g") else attribute.graphs
    return frozenset(found)


def to_proto(graph: Graph) -> onnx.ModelProto:
    """Turn a graph into one protobuf message, all weights inside.

    Raises:
        ModelError: The model is larger than protobuf's 2 GB; `save` can write it.
    """
    if weight_bytes(graph) > EXTERNAL_ABOVE_BYTES:
        raise ModelError("model is too large for one message", fix="save it to a file instead")
    proto = serialize(graph)
    _inline_external(proto, _folder(graph))
    return proto


def save(graph: Graph, path: str | os.PathLike[str], *, external: bool | None = None) -> list[Path]:
    """Write a graph; nothing appears under `path` until it is complete.

    Args:
        graph: What to write; it is not changed.
        path: The `.onnx` file. Weights go to `<name>.data` beside it when they are large.
        external: Force (True) or forbid (False) the separate file; None decides by size.

    Returns:
        The files written.

    Raises:
        ArtifactError: The disk is full, the folder is missing or not writable.
        ModelError: `external=False` and the model is larger than protobuf allows.
    """
    path = Path(path)
    if external is None:
        external = weight_bytes(graph) > EXTERNAL_ABOVE_BYTES
    if not path.parent.is_dir():
        raise ArtifactError("folder does not exist", where=str(path.parent), fix="create it")
    if path.is_dir():
        raise ArtifactError("is a folder", where=str(path), fix="name a file")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            draft = Path(scratch) / path.name
            if external:
                _write_external(graph, draft, _data_name(graph, path))
            else:
                _write_inline(graph, draft)
            # The model goes last: until then an older one is what it was.
            files = sorted(Path(scratch).iterdir(), key=lambda file: file.name == path.name)
            for file in files:
                os.replace(file, path.parent / file.name)
            return [path.parent / file.name for file in reversed(files)]
    except (OSError, EncodeError, ValueError, RuntimeError) as error:
        raise _write_error(error, path) from error


def weight_bytes(graph: Graph) -> int:
    """Bytes of all initializers, subgraphs included."""
    return sum(
        value.const_value.nbytes
        for each in graph.graphs()
        for value in each.initializers.values()
        if value.const_value is not None
    )


def external_bytes(path: Path) -> int:
    """Bytes of the external data files of a model on disk."""
    return sum((path.parent / name).stat().st_size for name in external_files(path))


def external_files(path: Path) -> list[str]:
    """Names of the external data files of a model on disk, as the model has them: not checked."""
    proto = onnx.load(path, load_external_data=False)
    names = {
        entry.value
        for tensor in tensors_of(proto)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(names)


def _load_file(path: Path) -> Graph:
    path = _model_file(path)
    # Not the target of a symbolic link: external data is looked for beside the name given.
    folder = path.parent.resolve()
    proto, mapped = _mapped(path)
    return from_proto(
        proto, where=str(path), base_dir=folder, source=folder / path.name, mapped=mapped
    )


def _model_file(path: Path) -> Path:
    """Return the file, or the model in a folder."""
    if not path.exists():
        raise ModelError("no such file", where=str(path))
    if path.is_dir():
        model = path / "model.onnx"
        if not model.is_file():
            raise ModelError("is a folder without model.onnx", where=str(path), fix="name a file")
        path = model
    return path


def _mapped(path: Path) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """Read a file; large weights inside stay there, and are returned by name."""
    try:
        found = onnx_wire.read(path)
    except OSError as error:
        raise ModelError(f"can't be read: {error.strerror}", where=str(path)) from error
    if found is None or any(
        tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors_of(found[0])
    ):
        # onnx's checker takes a model with external data from its file alone.
        return _parsed(path), {}
    return found


def _parsed(path: Path) -> onnx.ModelProto:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"can't be read: {error.strerror}", where=str(path)) from error
    if not data:
        raise ModelError("file is empty", where=str(path))
    return _parse(data, str(path))


def _deserialize(proto: onnx.ModelProto, where: str) -> ir.Model:
    with collector_paused(), quiet_onnx_ir():
        try:
            return ir.serde.deserialize_model(proto)
        except (ValueError, RuntimeError, RecursionError, TypeError, KeyError) as error:
            raise ModelError(f"can't read the graph: {first_line(error)}", where=where) from error


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise ModelError("not an ONNX file, or truncated", where=where) from error


def _inline_external(proto: onnx.ModelProto, folder: Path) -> None:
    for tensor in tensors_of(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            inline(tensor, ir.serde.deserialize_tensor(tensor, str(folder)))


def _write_inline(graph: Graph, draft: Path) -> None:
    if weight_bytes(graph) > EXTERNAL_ABOVE_BYTES:
        raise ModelError("model is too large for one file", fix="leave out external=False")
    proto, heavy = split_proto(graph, onnx_wire.MAPPED_WEIGHT_BYTES)
    _inline_external(proto, _folder(graph))
    with draft.open("wb") as file:
        onnx_wire.write(proto, heavy, file)


def _write_external(graph: Graph, draft: Path, data_name: str) -> None:
    with quiet_onnx_ir():
        ir.save(
            graph.model,
            draft,
            external_data=data_name,
            size_threshold_bytes=_EXTERNAL_EACH_BYTES,
        )
    proto = onnx.load(draft, load_external_data=False)
    strays = [
        tensor
        for tensor in tensors_of(proto)
        if any(e.key == "location" and e.value != data_name for e in tensor.external_data)
    ]
    if not graph.sparse and not strays:
        return
    # Tensors in attributes still point at the files beside the source.
    for tensor in strays:
        inline(tensor, ir.serde.deserialize_tensor(tensor, str(_folder(graph))))
    proto.graph.sparse_initializer.extend(graph.sparse.values())
    draft.write_bytes(proto.SerializeToString())


def _data_name(graph: Graph, path: Path) -> str:
    """Name the data file; never one that this graph's own weights are still read from."""
    used = {
        Path(value.const_value.path).resolve()
        for each in graph.graphs()
        for value in each.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    name, count = f"{path.name}.data", 0
    while (path.parent / name).resolve() in used:
        count += 1
        name = f"{path.name}.{count}.data"
    return name


def _folder(graph: Graph) -> Path:
    return graph.source.parent if graph.source else Path()


def _write_error(error: BaseException, path: Path) -> ArtifactError | ModelError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    if cause is None:
        return ModelError(f"can't write: {first_line(error)}", where=str(path))
    fix = "free some space" if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    return ArtifactError(f"can't write: {cause.strerror or cause}", where=str(path), fix=fix)
