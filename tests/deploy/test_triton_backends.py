"""Triton's backends: which one serves what, and what it is told."""

import json

import pytest
from artifacts import identity, linear, tree, write_artifact
from onnx import TensorProto
from tritonrules import accelerators, check_core, parameters, serve

from qgraph.deploy import deploy
from qgraph.errors import ArtifactError, ModelError, UsageError


def test_on_a_gpu(tmp_path, parsed, messages) -> None:
    own = {"engine": {"nhwc": True, "conv_search": "EXHAUSTIVE", "graph": True}}
    artifact = write_artifact(tmp_path / "a", linear(), engine="onnxruntime-cuda", options=own)
    _, config = serve(artifact, tmp_path / "repo", parsed)
    (group,) = config.instance_group
    assert messages.ModelInstanceGroup.Kind.Name(group.kind) == "KIND_GPU"
    assert accelerators(config) == {"cuda": {"use_tf32": "0", "prefer_nhwc": "1"}}
    assert parameters(config) == {"cudnn_conv_algo_search": "0"}


def test_threads(tmp_path, parsed) -> None:
    artifact = write_artifact(tmp_path / "a", linear(), options={"threads": 3})
    _, config = serve(artifact, tmp_path / "repo", parsed)
    assert parameters(config) == {"intra_op_thread_count": "3"}


def test_openvino(tmp_path, parsed) -> None:
    artifact = write_artifact(
        tmp_path / "a", linear(), engine="openvino", options={"float_precision": "f32"}
    )
    done, config = serve(artifact, tmp_path / "repo", parsed, instances=2)
    assert (config.backend, config.max_batch_size) == ("openvino", 0)
    assert config.default_model_filename == "model.onnx"
    assert parameters(config) == {"NUM_STREAMS": "2"}
    assert any("bfloat16" in line for line in done.remarks.warnings)
    _, config = serve(artifact, tmp_path / "repo", parsed, max_batch=4, name="batched")
    assert parameters(config) == {"ENABLE_BATCH_PADDING": "YES"}
    with pytest.raises(UsageError, match="--gpus"):
        deploy(artifact, "triton", tmp_path / "repo", name="gpu", gpus=(0,))


def test_openvino_in_bfloat16_and_what_it_does_not_take(tmp_path, parsed) -> None:
    half = {"float_precision": "bf16"}
    artifact = write_artifact(tmp_path / "a", linear(), engine="openvino", options=half)
    done, config = serve(artifact, tmp_path / "repo", parsed)
    assert parameters(config) == {"HINT_BF16": "YES"} and not done.remarks.warnings
    doubles = write_artifact(tmp_path / "b", identity(["N"], TensorProto.DOUBLE))
    with pytest.raises(ModelError, match="float64, which Triton's openvino backend"):
        deploy(doubles, "triton", tmp_path / "repo", backend="openvino")
    scalar = write_artifact(tmp_path / "c", identity([]))
    with pytest.raises(ModelError, match="is a scalar"):
        deploy(scalar, "triton", tmp_path / "repo", backend="openvino")


def tensorrt(folder, plan=b"", record=None, packages=None, **more):
    extra = {"engine.plan": plan} if plan else {}
    if record is not None:
        extra["engine.json"] = json.dumps(record).encode()
    return write_artifact(
        folder,
        linear(),
        target="tensorrt",
        precision="int8",
        engine="tensorrt",
        extra=extra,
        packages=packages or {"tensorrt": "10.9"},
        **more,
    )


def test_tensorrt_without_an_engine_goes_through_onnxruntime(tmp_path, parsed) -> None:
    artifact = tensorrt(tmp_path / "a")
    done, config = serve(artifact, tmp_path / "repo", parsed, max_batch=4)
    found = accelerators(config)
    assert list(found) == ["tensorrt", "cuda"]
    assert found["tensorrt"] == {
        "precision_mode": "INT8",
        "trt_profile_min_shapes": "x:1x4",
        "trt_profile_opt_shapes": "x:4x4",
        "trt_profile_max_shapes": "x:4x4",
    }
    assert any("builds its engines" in line for line in done.remarks.notes)
    with pytest.raises(ArtifactError, match="has no engine.plan"):
        deploy(artifact, "triton", tmp_path / "repo", name="b", backend="tensorrt")


def test_an_engine_is_served_by_the_tensorrt_backend(tmp_path, parsed) -> None:
    artifact = tensorrt(tmp_path / "a", b"plan")
    done = deploy(artifact, "triton", tmp_path / "repo")
    config = parsed(done.folder)
    check_core(config, done.folder)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert tree(done.folder / "1") == {"model.plan": b"plan"} and config.max_batch_size == 0
    assert "10.9" in (done.folder / "README.md").read_text()


def test_an_engines_record_decides_the_largest_batch(tmp_path, parsed) -> None:
    record = {
        "library": "TensorRT",
        "version": "11.0",
        "profiles": [{"x": [[1, 4], [4, 4], [16, 4]]}],
    }
    artifact = tensorrt(tmp_path / "a", b"plan", record)
    done = deploy(artifact, "triton", tmp_path / "repo")
    config = parsed(done.folder)
    assert config.max_batch_size == 16 and [w.batch_size for w in config.model_warmup] == [1, 16]
    with pytest.raises(UsageError, match="batches up to 16"):
        deploy(artifact, "triton", tmp_path / "repo", name="b", max_batch=17)
    other = {"profiles": [{"x": [[2, 4], [4, 4], [16, 4]]}]}
    done = deploy(tensorrt(tmp_path / "b", b"plan", other), "triton", tmp_path / "repo")
    assert not parsed(done.folder).model_warmup


@pytest.mark.parametrize("profiles", [[{"x": 3}], 7, [[]], [{"x": [[1], [2], []]}]])
def test_a_damaged_record_of_an_engine(tmp_path, profiles) -> None:
    artifact = tensorrt(tmp_path / "a", b"plan", {"profiles": profiles})
    with pytest.raises(ArtifactError, match="engine.json is damaged"):
        deploy(artifact, "triton", tmp_path / "repo")


@pytest.mark.parametrize(
    "made",
    [{"packages": {"tensorrt-rtx-cu13": "1.7"}}, {"record": {"library": "TensorRT-RTX"}}],
)
def test_engines_of_tensorrt_rtx_are_refused(tmp_path, parsed, made) -> None:
    artifact = tensorrt(tmp_path / "a", b"plan", **made)
    with pytest.raises(ArtifactError, match="TensorRT-RTX"):
        deploy(artifact, "triton", tmp_path / "repo")
    _, config = serve(artifact, tmp_path / "repo", parsed, backend="onnxruntime")
    assert "tensorrt" in accelerators(config)


def test_a_target_that_triton_has_no_backend_for(tmp_path, parsed) -> None:
    artifact = write_artifact(tmp_path / "a", linear(), target="edge-tpu", engine="another")
    done, config = serve(artifact, tmp_path / "repo", parsed)
    assert config.backend == "onnxruntime" and any("edge-tpu" in w for w in done.remarks.warnings)
