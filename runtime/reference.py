"""The reference that everything is judged against: the model as written, unoptimised.

ONNX Runtime's CPU provider with graph optimization off. At its default level it folds Conv +
BatchNormalization itself, and turns INT4 DequantizeLinear + MatMul into a kernel with int8
activations (relative error 4e-3 where this reference has 2e-7), so it would judge its own rewrites.

This file edits the model's protobuf itself, instead of through `qgraph.onnx_io`, so that the judge
shares no code with what it judges.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx

from qgraph.errors import ModelError, unknown_name
from qgraph.runtime.exact_products import may_overflow, with_exact_products
from qgraph.runtime.ort_session import OrtSession, load_onnxruntime, session_options

ENGINE = "reference"
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def open_reference(
    model: Path | bytes, outputs: Sequence[str] = (), *, threads: int = 0
) -> OrtSession:
    """Open a model in the unoptimised reference.

    Prepacking is off too: it keeps a second copy of the weights, and saves no time worth having
    in a reference.

    Args:
        model: Path, or a serialized model of less than 2 GB without external data.
        outputs: Intermediate tensors of the main graph to give out besides the graph's outputs.
        threads: Threads; 0 means all available cores.

    Raises:
        UsageError: An intermediate tensor's name is unknown.
        ModelError: The file does not exist or is not ONNX.
        EngineError: ONNX Runtime is missing or refuses the model.
    """
    options = session_options(threads)
    options.graph_optimization_level = load_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    source: Path | bytes = model
    if may_overflow(model):
        source = with_exact_products(_parse(model)).SerializeToString()
        if isinstance(model, Path):
            options.add_session_config_entry(_EXTERNAL_FOLDER, str(model.resolve().parent))
        model = source
    if outputs:
        source = _with_outputs(model, outputs)
        if isinstance(model, Path):
            options.add_session_config_entry(_EXTERNAL_FOLDER, str(model.resolve().parent))
    return OrtSession(source, options, engine=ENGINE, providers=["CPUExecutionProvider"])


def _with_outputs(model: Path | bytes, names: Sequence[str]) -> bytes:
    """The serialized model with further graph outputs; external data stays where it is."""
    proto = _parse(model)
    graph = proto.graph
    given = {value.name for value in graph.output}
    known = {name for node in graph.node for name in node.output if name}
    for name in dict.fromkeys(names):
        if name in given:
            continue
        if name not in known:
            raise unknown_name("tensor", name, known | given)
        # No type: ONNX Runtime infers it, which also serves where shape inference here fails.
        graph.output.append(onnx.ValueInfoProto(name=name))
    return proto.SerializeToString()


def _parse(model: Path | bytes) -> onnx.ModelProto:
    where = str(model) if isinstance(model, Path) else "model"
    try:
        if isinstance(model, Path):
            return onnx.load(model, load_external_data=False)
        return onnx.load_from_string(model)
    except FileNotFoundError as error:
        raise ModelError("no such file", where=where, fix="check the path") from error
    except Exception as error:
        raise ModelError(
            f"not an ONNX model ({type(error).__name__})", where=where, fix="check the file"
        ) from error
