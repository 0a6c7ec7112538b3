"""What Triton refuses, as its sources say: there is no server here to ask.

Sources: `ValidateModelConfig`, `ValidateIOShape` and `GenerateWarmupData` of
github.com/triton-inference-server/core, `ValidateInputs`, `ValidateOutputs` and
`CompareDimsSupported` of github.com/triton-inference-server/onnxruntime_backend.
"""

from math import prod

import numpy as np
import onnxruntime

from qgraph.deploy import deploy

NUMPY = {
    "TYPE_BOOL": "bool",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
    **{
        f"TYPE_{u}INT{bits}": f"{u.lower()}int{bits}" for u in ("", "U") for bits in (8, 16, 32, 64)
    },
}
ORT = {name: kind for name, kind in NUMPY.items()} | {
    "TYPE_FP32": "float",
    "TYPE_FP64": "double",
    "TYPE_BF16": "bfloat16",
    "TYPE_STRING": "string",
}


def check_core(config, folder):
    """Hold a parsed configuration against the server's own checks."""
    assert config.name == folder.name and config.backend in ("onnxruntime", "tensorrt", "openvino")
    assert config.max_batch_size >= 0 and config.input and config.output
    for io in (*config.input, *config.output):
        assert io.name and io.data_type and io.dims
        assert all(dim == -1 or dim >= 1 for dim in io.dims)
        if io.HasField("reshape"):
            assert config.max_batch_size > 0 and prod(io.dims) == 1
    batching = config.dynamic_batching
    assert all(1 <= size <= config.max_batch_size for size in batching.preferred_batch_size)
    for group in config.instance_group:
        kind = type(group).Kind.Name(group.kind)
        assert kind == "KIND_GPU" or (kind == "KIND_CPU" and not group.gpus)
    versions = [each for each in folder.iterdir() if each.name.isdigit()]
    assert versions and all((v / config.default_model_filename).is_file() for v in versions)
    inputs = {io.name: io for io in config.input}
    for request in config.model_warmup:
        assert set(request.inputs) == set(inputs)
        assert 1 <= request.batch_size <= max(config.max_batch_size, 1)
        for name, value in request.inputs.items():
            assert value.data_type == inputs[name].data_type and all(d >= 1 for d in value.dims)
            assert len(value.dims) == len(inputs[name].dims)
            for own, warm in zip(inputs[name].dims, value.dims, strict=True):
                assert own in (-1, warm)
            assert value.zero_data or (folder / "warmup" / value.input_data_file).is_file()


def check_onnxruntime(config, session):
    """Hold it against the backend's checks of a session, whose shapes decide."""
    names = type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type
    sides = (
        (config.input, session.get_inputs(), False),
        (config.output, session.get_outputs(), True),
    )
    assert len(config.input) == len(session.get_inputs())
    for ios, metas, exact in sides:
        found = {meta.name: meta for meta in metas}
        for io in ios:
            meta = found[io.name]
            assert meta.type == f"tensor({ORT[names.values_by_number[io.data_type].name]})"
            dims = list(io.reshape.shape if io.HasField("reshape") else io.dims)
            shape = [dim if isinstance(dim, int) else -1 for dim in meta.shape]
            if not shape:
                assert all(dim == 1 for dim in dims)
                continue
            if config.max_batch_size:
                assert shape[0] == -1
                dims = [-1, *dims]
            assert len(shape) == len(dims)
            for own, wanted in zip(shape, dims, strict=True):
                assert own == wanted or (own == -1 and not exact)


def warm(config, session):
    """Run the warm-up requests as the server puts them together; return how many there were."""
    names = type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type
    reshaped = {io.name for io in config.input if io.HasField("reshape")}
    for request in config.model_warmup:
        feeds = {}
        for name, value in request.inputs.items():
            dims = [] if name in reshaped else list(value.dims)
            shape = [request.batch_size, *dims] if config.max_batch_size else dims
            kind = names.values_by_number[value.data_type].name
            feeds[name] = (
                np.full(shape, "", object)
                if kind == "TYPE_STRING"
                else np.zeros(shape, NUMPY[kind])
            )
        session.run(None, feeds)
    return len(config.model_warmup)


def session(place, version=1):
    """Open a version of a deployed model."""
    return onnxruntime.InferenceSession(
        str(place / str(version) / "model.onnx"), providers=["CPUExecutionProvider"]
    )


def serve(artifact, folder, parsed, **options):
    """Deploy, and hold the configuration against every rule that is known."""
    done = deploy(artifact, "triton", folder, **options)
    config = parsed(done.folder)
    check_core(config, done.folder)
    opened = session(done.folder)
    check_onnxruntime(config, opened)
    warm(config, opened)
    return done, config


def parameters(config):
    """Read the parameters of the backend."""
    return {key: value.string_value for key, value in config.parameters.items()}


def accelerators(config):
    """Read onnxruntime's providers on a GPU, in order."""
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    return {each.name: dict(each.parameters) for each in found}
