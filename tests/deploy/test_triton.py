"""Triton's model repository: its configuration, held against Triton's messages and rules."""

import numpy as np
import pytest
from artifacts import identity, linear, tree, write_artifact
from harness import model
from onnx import TensorProto
from tritonrules import check_core, serve, session

from qgraph.deploy import deploy
from qgraph.errors import ModelError, UsageError


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
