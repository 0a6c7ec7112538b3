"""Triton's configuration of one model: what it is made from, and its text.

Sources: the READMEs and sources of Triton's onnxruntime, tensorrt and openvino backends, and
docs/user_guide/model_configuration.md of github.com/triton-inference-server/server.
"""

from collections.abc import Mapping
from typing import Any

from qgraph.deploy.engines import CONV_SEARCHES, Outside, cuda_options, outside
from qgraph.deploy.layout import version_policy
from qgraph.deploy.payload import PLAN, Payload
from qgraph.deploy.pbtxt import Word, dumps
from qgraph.deploy.remarks import Remarks
from qgraph.deploy.triton_backends import BACKENDS, Backend
from qgraph.deploy.triton_batching import dynamic_batching, max_batch_size
from qgraph.deploy.triton_options import TritonOptions
from qgraph.deploy.triton_tensors import tensors
from qgraph.errors import ArtifactError, UsageError
from qgraph.registry import pick

HEAD = """\
# Written by `qgraph deploy`. It may be edited: further versions are put beside the ones that are
# there and leave it alone.
"""
# Of onnxruntime's TensorRT provider: the arithmetic that it may use beside float32.
_TENSORRT_MODES = {"int8": "INT8", "fp16": "FP16", "bf16": "BF16"}


def settings(payload: Payload, options: TritonOptions) -> tuple[dict[str, Any], Remarks]:
    """Work out the fields of the configuration that all versions of a model share.

    Returns:
        The fields as JSON-able values, and remarks for the user.

    Raises:
        UsageError: Options do not fit each other or the model.
        ModelError, ArtifactError: Triton can't take the model.
    """
    remarks = Remarks()
    engine = outside(payload.engine)
    backend = _backend(payload, engine, options, remarks)
    gpu = _on_gpu(payload, engine, backend, options, remarks)
    max_batch = max_batch_size(payload, backend, options, remarks)
    batched = max_batch > 0
    instances = {"count": options.instances or 1, "kind": Word("KIND_GPU" if gpu else "KIND_CPU")}
    fields: dict[str, Any] = {
        "backend": backend.name,
        "default_model_filename": backend.file,
        "max_batch_size": max_batch,
        "input": tensors(payload, "input", backend, batched=batched),
        "output": tensors(payload, "output", backend, batched=batched),
        "version_policy": version_policy(options.version_policy),
        "dynamic_batching": dynamic_batching(max_batch, options),
        "instance_group": [instances | ({"gpus": list(options.gpus)} if options.gpus else {})],
    }
    if backend.name == "onnxruntime":
        fields |= _onnxruntime(payload, engine, gpu, max_batch, fields["input"])
    if backend.name == "openvino":
        fields |= _openvino(payload, options, max_batch, remarks)
    return fields, remarks


def text(name: str, fields: Mapping[str, Any], warm_up: list[dict[str, Any]]) -> str:
    """Write `config.pbtxt`."""
    return HEAD + dumps({"name": name} | dict(fields) | {"model_warmup": warm_up})


def _backend(
    payload: Payload, engine: Outside, options: TritonOptions, remarks: Remarks
) -> Backend:
    name = options.backend or engine.backend
    if options.backend is None and payload.plan is not None:
        name = "tensorrt"
    backend = pick("backend of Triton", name, BACKENDS)
    if backend.name == "tensorrt":
        _check_plan(payload)
    elif engine.accelerator == "tensorrt" and backend.name == "onnxruntime":
        remarks.notes.append(
            "onnxruntime's TensorRT provider serves model.onnx: it builds its engines when the "
            "server loads the model, which takes minutes"
        )
    if not engine.known and options.backend is None:
        remarks.warnings.append(
            f"Triton has no backend for what the artifact was made for ({payload.manifest.target}): "
            "onnxruntime on the CPU serves it"
        )
    return backend


def _check_plan(payload: Payload) -> None:
    """Refuse the tensorrt backend where there is nothing that it can load.

    Raises:
        ArtifactError: There is no engine, or TensorRT-RTX built it.
    """
    where = str(payload.artifact.path)
    if payload.plan is None:
        raise ArtifactError(
            f"has no {PLAN}, which Triton's tensorrt backend needs",
            where=where,
            fix="choose --backend onnxruntime, which runs model.onnx through TensorRT",
        )
    packages = payload.manifest.packages
    library = str(payload.plan_record.get("library") or "")
    if not library and "tensorrt" not in packages:
        library = next((name for name in packages if "tensorrt-rtx" in name), "")
    if "rtx" in library.lower():
        raise ArtifactError(
            f"{PLAN} was built by TensorRT-RTX, whose engines Triton's tensorrt backend can't load",
            where=where,
            fix="compile it where the package tensorrt is installed, or choose --backend onnxruntime",
        )


def _on_gpu(
    payload: Payload,
    engine: Outside,
    backend: Backend,
    options: TritonOptions,
    remarks: Remarks,
) -> bool:
    if backend.name == "openvino":
        if options.gpus:
            raise UsageError("--gpus is not for the openvino backend", fix="leave it out")
        return False
    if options.gpus and not engine.gpu:
        remarks.notes.append(
            f"{payload.engine or 'a CPU'} was what the artifact was made for, no GPU"
        )
    return bool(options.gpus) or backend.name == "tensorrt" or engine.gpu


def _onnxruntime(
    payload: Payload, engine: Outside, gpu: bool, max_batch: int, inputs: list[dict[str, Any]]
) -> dict[str, Any]:
    parameters = {}
    if payload.options.threads:
        parameters["intra_op_thread_count"] = str(payload.options.threads)
    fields: dict[str, Any] = {}
    if gpu:
        # Not among the accelerator's: the backend overwrites what stands there with EXHAUSTIVE,
        # which tries every algorithm for every new shape.
        options = cuda_options(payload.own_options)
        parameters["cudnn_conv_algo_search"] = CONV_SEARCHES[options.pop("cudnn_conv_algo_search")]
        accelerators = [_accelerator("cuda", options)]
        if engine.accelerator == "tensorrt":
            accelerators.insert(0, _accelerator("tensorrt", _tensorrt(payload, max_batch, inputs)))
        fields["optimization"] = {
            "execution_accelerators": {"gpu_execution_accelerator": accelerators}
        }
    return fields | {"parameters": _parameters(parameters)}


def _tensorrt(payload: Payload, max_batch: int, inputs: list[dict[str, Any]]) -> dict[str, str]:
    """Options of onnxruntime's TensorRT provider."""
    options = {"precision_mode": _TENSORRT_MODES.get(payload.manifest.precision, "FP32")}
    if max_batch and all(-1 not in each["dims"] for each in inputs):
        # Otherwise an engine is built again for every batch size that comes along.
        for what, size in (("min", 1), ("opt", max_batch), ("max", max_batch)):
            shapes = (
                f"{each['name']}:{'x'.join(map(str, (size, *_own(each))))}" for each in inputs
            )
            options[f"trt_profile_{what}_shapes"] = ",".join(shapes)
    return options


def _own(message: dict[str, Any]) -> list[int]:
    """Axes behind the batch axis, as the model has them."""
    return [] if "reshape" in message else list(message["dims"])


def _openvino(
    payload: Payload, options: TritonOptions, max_batch: int, remarks: Remarks
) -> dict[str, Any]:
    chosen = payload.options
    parameters = {}
    if chosen.threads:
        parameters["INFERENCE_NUM_THREADS"] = str(chosen.threads)
    if options.instances and options.instances > 1:
        parameters["NUM_STREAMS"] = str(options.instances)
    if max_batch:
        parameters["ENABLE_BATCH_PADDING"] = "YES"
        remarks.notes.append(
            f"the openvino backend computes {max_batch} rows for every batch, however small"
        )
    if chosen.float_precision == "bf16":
        parameters["HINT_BF16"] = "YES"
    else:
        remarks.warnings.append(
            f"Triton's openvino backend can't be told to compute in {chosen.float_precision}: what is "
            "float runs in bfloat16 on CPUs that have it (AMX); --to openvino-model-server can"
        )
    return {"parameters": _parameters(parameters)}


def _accelerator(name: str, options: Mapping[str, str]) -> dict[str, Any]:
    pairs = [{"key": key, "value": value} for key, value in options.items()]
    return {"name": name, "parameters": pairs}


def _parameters(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]
