"""Triton's model repository: parsed with its own messages, held against its backends' rules."""

import errno
import json
import os
import shutil

import numpy as np
import onnxruntime
import pytest
from artifacts import linear, tree, write_artifact
from harness import model
from onnx import TensorProto, helper
from tritonrules import check_core, check_onnxruntime, warm

from qgraph.deploy import deploy
from qgraph.errors import ArtifactError, DataError, ModelError, UsageError


def session(place, version=1):
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
    return {key: value.string_value for key, value in config.parameters.items()}


def accelerators(config):
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    return {each.name: dict(each.parameters) for each in found}


def identity(shape, kind=TensorProto.FLOAT, out=None):
    x = helper.make_tensor_value_info("x", kind, shape)
    y = helper.make_tensor_value_info("y", kind, shape if out is None else out)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_model_with_a_batch_axis(artifact, tmp_path, parsed) -> None:
    done, config = serve(artifact, tmp_path / "repo", parsed, name="net")
    assert done.folder == tmp_path / "repo" / "net"
    assert sorted(tree(done.folder)) == ["1/model.onnx", "README.md", "config.pbtxt", "qgraph.json"]
    assert (config.name, config.backend, config.max_batch_size) == ("net", "onnxruntime", 8)
    assert list(config.input[0].dims) == [4] and list(config.output[0].dims) == [3]
    assert config.HasField("dynamic_batching") and config.version_policy.latest.num_versions == 1
    assert [each.batch_size for each in config.model_warmup] == [1, 8]
    assert (done.folder / "1/model.onnx").read_bytes() == (artifact / "model.onnx").read_bytes()
    assert not [path for path in (tmp_path / "repo").rglob(".*")]


def test_every_option(artifact, tmp_path, parsed) -> None:
    done = deploy(
        artifact,
        "triton",
        tmp_path / "repo",
        version=7,
        max_batch=32,
        preferred_batch=(16, 4),
        queue_delay_us=250,
        instances=3,
        gpus=(0, 2),
        version_policy="specific:7,9",
    )
    config = parsed(done.folder)
    check_core(config, done.folder)
    assert (done.folder / "7" / "model.onnx").is_file() and config.max_batch_size == 32
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    (group,) = config.instance_group
    assert (group.count, list(group.gpus)) == (3, [0, 2])
    assert any("onnxruntime-cpu was what" in line for line in done.remarks.notes)
    assert list(config.version_policy.specific.versions) == [7, 9]
    assert [each.batch_size for each in config.model_warmup] == [1, 4, 16, 32]


def test_batches_as_sent(artifact, tmp_path, parsed) -> None:
    _, config = serve(
        artifact, tmp_path / "r", parsed, dynamic_batching=False, version_policy="all"
    )
    assert config.max_batch_size == 8 and not config.HasField("dynamic_batching")
    assert config.version_policy.HasField("all")


@pytest.mark.parametrize(
    ("proto", "dims", "why"),
    [
        (linear("2,4", "2,3"), [2, 4], "fixed to 2"),
        (linear("A,4", "B,3"), [-1, 4], "called A, B"),
        (identity([None, 4]), [-1, 4], "called ?"),
        (identity([]), [1], "has no axes"),
    ],
    ids=["fixed", "other names", "no name", "scalar"],
)
def test_without_one_batch_axis_the_first_axis_is_the_clients(
    tmp_path, parsed, proto, dims, why
) -> None:
    artifact = write_artifact(tmp_path / "a", proto)
    done, config = serve(artifact, tmp_path / "repo", parsed)
    assert config.max_batch_size == 0 and list(config.input[0].dims) == dims
    assert not config.HasField("dynamic_batching")
    assert any(why in note for note in done.remarks.notes)


def test_a_batch_that_was_asked_for_needs_free_axes_alone(tmp_path, parsed) -> None:
    free = write_artifact(tmp_path / "free", linear("A,4", "B,3"))
    assert serve(free, tmp_path / "repo", parsed, max_batch=4)[1].max_batch_size == 4
    fixed = write_artifact(tmp_path / "fixed", linear("2,4", "2,3"))
    with pytest.raises(UsageError, match="fixed to 2"):
        deploy(fixed, "triton", tmp_path / "repo", max_batch=4)
    assert sorted(p.name for p in (tmp_path / "repo").iterdir()) == ["free"]


def test_a_batch_of_scalars_is_reshaped(tmp_path, parsed) -> None:
    artifact = write_artifact(tmp_path / "a", identity(["N"]))
    _, config = serve(artifact, tmp_path / "repo", parsed)
    assert list(config.input[0].dims) == [1] and config.input[0].HasField("reshape")
    assert list(config.input[0].reshape.shape) == []


def test_shapes_are_those_that_onnxruntime_infers(tmp_path, parsed) -> None:
    artifact = write_artifact(tmp_path / "a", linear("N,4", "N,M"))
    _, config = serve(artifact, tmp_path / "repo", parsed)
    assert list(config.output[0].dims) == [3]


TYPES = {
    "BOOL": "BOOL",
    "STRING": "STRING",
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    **{f"{u}INT{bits}": f"{u}INT{bits}" for u in ("", "U") for bits in (8, 16, 32, 64)},
}


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_that_triton_has(tmp_path, messages, parsed, kind) -> None:
    artifact = write_artifact(tmp_path / "a", identity(["N", 2], getattr(TensorProto, kind)))
    done = deploy(artifact, "triton", tmp_path / "repo")
    config = parsed(done.folder)
    check_core(config, done.folder)
    assert messages.DataType.Name(config.input[0].data_type) == f"TYPE_{TYPES[kind]}"
    # onnxruntime has no CPU kernel for some; then nothing was seen to run and nothing is warmed up.
    assert len(config.model_warmup) == 2 or done.remarks.notes


@pytest.mark.parametrize(
    ("proto", "line"),
    [
        (
            identity(["N", 2], TensorProto.FLOAT8E4M3FN),
            "input 'x': is float8e4m3fn, for which Triton",
        ),
        (identity(["N", 0]), "input 'x': has an axis of length 0"),
    ],
)
def test_what_triton_can_not_take(tmp_path, proto, line) -> None:
    artifact = write_artifact(tmp_path / "a", proto)
    with pytest.raises(ModelError, match=line):
        deploy(artifact, "triton", tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_an_output_of_unknown_rank(tmp_path) -> None:
    proto = model("m (float[N,4] x, int64[R] s) => (float[A] y) { y = Reshape(x, s) }", {})
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    artifact = write_artifact(tmp_path / "a", proto)
    with pytest.raises(ModelError, match="output 'y': has an unknown number of axes"):
        deploy(artifact, "triton", tmp_path / "repo")


def test_a_decoder_with_its_cache(decoder, tmp_path, parsed) -> None:
    done, config = serve(decoder, tmp_path / "repo", parsed)
    names = [each.name for each in config.input]
    assert names[0] == "input_ids" and len(names) == 5 and len(config.output) == 5
    assert list(config.input[1].dims) == [2, -1, 8] and len(config.model_warmup) == 2
    page = (done.folder / "README.md").read_text()
    assert "tokenizer.json" in page and "--input-data zero" in page
    assert "--shape past_key_values.0.key:2,1,8" in page


def test_external_data_comes_along(tmp_path, parsed) -> None:
    artifact = write_artifact(tmp_path / "a", linear(), external=True)
    done, _ = serve(artifact, tmp_path / "repo", parsed)
    assert sorted(tree(done.folder / "1")) == ["model.onnx", "w.bin"]
    x = np.ones((2, 4), np.float32)
    (found,) = session(done.folder).run(None, {"x": x})
    np.testing.assert_allclose(
        found, x @ np.arange(12, dtype=np.float32).reshape(4, 3) / 10, rtol=1e-6
    )


# -- warm-up ---------------------------------------------------------------------------------------


def test_warming_up_with_data(artifact, tmp_path, parsed) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "d.npz", x=x)
    done, config = serve(artifact, tmp_path / "repo", parsed, data=str(tmp_path / "d.npz"))
    value = config.model_warmup[1].inputs["x"]
    assert list(value.dims) == [4] and config.model_warmup[1].batch_size == 8
    assert (done.folder / "warmup" / value.input_data_file).read_bytes() == x[0].tobytes()


def test_warming_up_with_strings(tmp_path, parsed) -> None:
    artifact = write_artifact(tmp_path / "a", identity(["N", 2], TensorProto.STRING))
    np.savez(tmp_path / "d.npz", x=np.array([["ab", "é"]]))
    done = deploy(artifact, "triton", tmp_path / "repo", data=str(tmp_path / "d.npz"))
    raw = (done.folder / "warmup" / "0").read_bytes()
    assert raw == b"\x02\0\0\0ab" + b"\x02\0\0\0" + "é".encode()


def test_no_warm_up(artifact, tmp_path, parsed) -> None:
    assert not serve(artifact, tmp_path / "repo", parsed, warm_up="none")[1].model_warmup
    with pytest.raises(DataError):
        deploy(artifact, "triton", tmp_path / "repo", name="b", data=str(tmp_path / "no.npz"))


def test_a_model_that_takes_no_zeros_is_not_warmed_up_with_them(tmp_path, parsed) -> None:
    # 12 elements are put into rows of x: no zero, and nothing random, divides them.
    proto = model(
        "m (int64[A] x) => (float[N,M] y) { y = Reshape(w, x) }",
        {"w": np.arange(12, dtype=np.float32)},
    )
    artifact = write_artifact(tmp_path / "a", proto)
    done, config = serve(artifact, tmp_path / "repo", parsed)
    assert not config.model_warmup and any("no warm-up" in line for line in done.remarks.notes)


# -- backends --------------------------------------------------------------------------------------


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


# -- versions --------------------------------------------------------------------------------------


def test_a_further_version_touches_nothing(artifact, tmp_path, parsed) -> None:
    repo = tmp_path / "repo"
    first = deploy(artifact, "triton", repo, name="net", max_batch=4)
    (first.folder / "config.pbtxt").write_text(
        (first.folder / "config.pbtxt").read_text().replace("count: 1", "count: 2")
    )
    before = tree(first.folder)
    other = write_artifact(tmp_path / "better", linear(), precision="fp16")
    second = deploy(other, "triton", repo, name="net")
    after = tree(second.folder)
    assert after.pop("2/model.onnx") == (other / "model.onnx").read_bytes()
    record = json.loads(after.pop("qgraph.json"))
    before.pop("qgraph.json")
    assert after == before and sorted(record["versions"]) == ["1", "2"]
    assert parsed(second.folder).max_batch_size == 4
    assert {path.name for path in second.files} == {"model.onnx", "qgraph.json"}
    assert deploy(other, "triton", repo, name="net", version=5).folder == second.folder
    with pytest.raises(ArtifactError, match="version 2 is there already; .*next one, 6"):
        deploy(other, "triton", repo, name="net", version=2)


def test_the_same_artifact_twice_is_most_likely_a_mistake(artifact, tmp_path) -> None:
    deploy(artifact, "triton", tmp_path / "repo")
    with pytest.raises(ArtifactError, match="there already, as version 1; pass --version 2"):
        deploy(artifact, "triton", tmp_path / "repo")


@pytest.mark.parametrize(
    ("proto", "options", "line"),
    [
        (linear(), {"max_batch": 16}, "max_batch_size: 8 there, 16 now"),
        (identity(["N", 4]), {}, "output: "),
        (linear(), {"backend": "openvino"}, "backend: onnxruntime there, openvino now"),
    ],
)
def test_a_version_that_needs_another_configuration(
    artifact, tmp_path, proto, options, line
) -> None:
    place = deploy(artifact, "triton", tmp_path / "repo", name="net").folder
    before = tree(place)
    other = write_artifact(tmp_path / "other", proto)
    with pytest.raises(ArtifactError, match=line):
        deploy(other, "triton", tmp_path / "repo", name="net", **options)
    assert tree(place) == before


def test_what_is_not_ours_is_left_alone(artifact, tmp_path) -> None:
    repo = tmp_path / "repo"
    (repo / "theirs" / "1").mkdir(parents=True)
    (repo / "theirs" / "config.pbtxt").write_text("name: 'theirs'")
    with pytest.raises(ArtifactError, match="did not write it"):
        deploy(artifact, "triton", repo, name="theirs")
    with pytest.raises(ArtifactError, match="holds one model"):
        deploy(artifact, "triton", repo / "theirs")
    (repo / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="did not write it"):
        deploy(artifact, "triton", repo, name="link")
    (repo / "file").write_text("")
    with pytest.raises(ArtifactError, match="is no folder"):
        deploy(artifact, "triton", repo / "file")
    with pytest.raises(ArtifactError, match="holds one model"):
        deploy(artifact, "triton", write_artifact(tmp_path / "b", linear()))
    deploy(artifact, "triton", repo, name="ours")
    (repo / "ours" / "qgraph.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"qgraph\.json is missing, damaged"):
        deploy(artifact, "triton", repo, name="ours")


@pytest.mark.parametrize("first", [True, False])
def test_a_full_disk_leaves_nothing_behind(artifact, tmp_path, monkeypatch, first) -> None:
    repo = tmp_path / "repo"
    if not first:
        deploy(
            write_artifact(tmp_path / "old", linear(), precision="fp16"), "triton", repo, name="n"
        )
    before = tree(tmp_path)

    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ArtifactError, match="No space left"):
        deploy(artifact, "triton", repo, name="n")
    assert tree(tmp_path) == before and repo.exists() is not first


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"name": "../up"}, "can't be a model's name"),
        ({"name": ".hidden"}, "can't be a model's name"),
        ({"name": ""}, "can't be a model's name"),
        ({"backend": "pytorch"}, "unknown backend of Triton 'pytorch'"),
        ({"max_batch": 4, "preferred_batch": (2, 8)}, "does not lie within 1 and 4"),
        ({"preferred_batch": (0,)}, "does not lie within 1 and 8"),
        ({"max_batch": 1, "queue_delay_us": 5}, "options of dynamic batching"),
        ({"dynamic_batching": False, "queue_delay_us": 5}, "--no-dynamic-batching"),
        ({"max_batch": 0, "dynamic_batching": True}, "options of dynamic batching"),
        *(
            ({"version_policy": text}, "--version-policy")
            for text in ("newest", "latest:0", "latest:x", "specific", "specific:1,,2", "all:1")
        ),
        ({"shape": ("x:1x4",)}, "--shape is not for triton"),
        ({"warm_up": "sample"}, "--warm-up sample needs data"),
        ({"warm_up": "d.npz"}, "--warm-up 'd.npz' is none"),
    ],
)
def test_options_that_do_not_fit(artifact, tmp_path, options, line) -> None:
    with pytest.raises(UsageError, match=line):
        deploy(artifact, "triton", tmp_path / "repo", **options)
    assert not (tmp_path / "repo").exists()


def test_names_from_a_model_can_not_break_out(tmp_path, parsed) -> None:
    evil = 'a"}\n`|\\ é'
    proto = identity(["N", 2])
    proto.graph.input[0].name = proto.graph.node[0].input[0] = evil
    artifact = write_artifact(tmp_path / "x y\n", proto)
    done, config = serve(artifact, tmp_path / "repo", parsed)
    assert config.input[0].name == evil and done.folder.name == "x_y_"
    page = (done.folder / "README.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    compile(code, "README", "exec")
