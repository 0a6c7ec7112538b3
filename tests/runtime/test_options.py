from dataclasses import asdict

import onnx
import pytest
from runtime_models import small_cnn

from qgraph import onnx_io
from qgraph.errors import EngineError, QGraphError, UsageError
from qgraph.job import resolve
from qgraph.recipe import load_recipe, with_settings
from qgraph.runtime import backend, backends
from qgraph.runtime.backend import EngineOptions, Tunable
from qgraph.runtime.cuda_ways import CudaOptions, CudaSettings, ways
from qgraph.runtime.options import own_options, read_options

CUDA = backend("onnxruntime-cuda")


def test_options_come_from_json_and_go_to_the_provider():
    chosen = own_options(CudaOptions, {"graph": True, "conv_search": "EXHAUSTIVE"}, "e")
    assert chosen == CudaOptions(graph=True, conv_search="EXHAUSTIVE")
    assert chosen.provider_options(graph=False) == {
        "use_tf32": "0",
        "prefer_nhwc": "0",
        "fuse_conv_bias": "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "enable_cuda_graph": "0",
    }
    found = CudaOptions(tf32=True, nhwc=True).provider_options(graph=True)
    assert [key for key, value in found.items() if value == "1"] == [
        "use_tf32",
        "prefer_nhwc",
        "enable_cuda_graph",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grap": True}, "unknown option of e 'grap'; did you mean 'graph'"),
        ({"graph": "yes"}, "e: option graph is 'yes', which it can't be; use true or false"),
        ({"graph": 1}, "use true or false"),
        ({"conv_search": "ALL"}, "use HEURISTIC or EXHAUSTIVE or DEFAULT"),
    ],
)
def test_wrong_options_are_named(given, message):
    with pytest.raises(QGraphError, match=message):
        own_options(CudaOptions, given, "e")


def test_lines_of_the_command_line():
    assert read_options(["graph=true", "conv_search = DEFAULT", "n=3"]) == {
        "graph": True,
        "conv_search": "DEFAULT",
        "n": 3,
    }
    with pytest.raises(UsageError, match="write NAME=VALUE"):
        read_options(["graph"])


def test_engines_without_options_refuse_them():
    for name in ("onnxruntime-cpu", "openvino"):
        if backend(name).unavailable():
            continue
        with pytest.raises(QGraphError, match=f"unknown option of {name} 'graph'"):
            backend(name).open(small_cnn().SerializeToString(), EngineOptions(engine={"graph": 1}))


def test_every_variant_is_one_that_its_engine_takes():
    for each in backends().values():
        if not isinstance(each, Tunable):
            continue
        for precision in ("fp32", "fp16", "bf16", "int8"):
            found = each.variants(precision)
            assert "" in found and all(EngineOptions(**asdict(o)) == o for o in found.values())
    for options in CUDA.variants("fp16", {"Conv"}).values():
        own_options(CudaOptions, options.engine, "e")


def test_ways_of_cuda_fit_the_operators():
    plain = CudaSettings()
    assert list(ways({"MatMul"}, plain)) == ["", "graph"]
    assert list(ways({"MaxPool"}, plain)) == ["", "nhwc", "graph", "nhwc, graph"]
    fused = ["nhwc, fused bias", "nhwc, graph, fused bias"]
    assert list(ways({"Conv"}, plain)) == ["", "nhwc", "graph", "nhwc, graph", *fused]
    # Channels last make onnxruntime miscount the tokens of this one.
    assert list(ways({"Conv", "GroupQueryAttention"}, plain)) == ["", "graph"]
    with pytest.raises(UsageError, match="compute GroupQueryAttention wrongly"):
        ways({"GroupQueryAttention"}, CudaSettings(nhwc=True))


def test_what_the_user_decided_is_not_measured():
    found = ways({"Conv"}, CudaSettings(graph=True, nhwc=False, tf32=True, conv_search="DEFAULT"))
    assert found == {"graph": CudaOptions(graph=True, tf32=True, conv_search="DEFAULT")}
    found = ways({"Conv"}, CudaSettings(fuse_conv_bias=True, graph=False))
    assert list(found) == ["fused bias", "nhwc, fused bias"]
    (only,) = ways({"MatMul"}, CudaSettings(nhwc=True, graph=False)).values()
    assert only.nhwc


def test_cuda_options_are_checked_before_anything_is_loaded():
    with pytest.raises(UsageError, match="option of onnxruntime-cuda 'nwhc'; did you mean 'nhwc'"):
        CUDA.open(small_cnn().SerializeToString(), EngineOptions(engine={"nwhc": True}))
    with pytest.raises(EngineError, match="use true or false"):
        CUDA.open(small_cnn().SerializeToString(), EngineOptions(engine={"nhwc": 1}))


def test_the_cuda_table_of_a_recipe(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text("[cuda]\nnhwc = false\n")
    recipe = with_settings(load_recipe(file), ["cuda.tf32=true", "cuda.conv_search=DEFAULT"])
    want = CudaSettings(nhwc=False, tf32=True, conv_search="DEFAULT")
    assert recipe.engine_options("onnxruntime-cuda") == recipe.cuda == want
    assert recipe.engine_options("onnxruntime-cpu") is None
    with pytest.raises(UsageError, match="--set cuda: unknown key .nwhc.; did you mean .nhwc."):
        with_settings(recipe, ["cuda.nwhc=true"])
    with pytest.raises(UsageError, match="target 'cpu' has no cuda engine"):
        resolve("cpu", None, None, (), ["cuda.nhwc=true"], None)
    assert resolve("cuda", None, None, (), ["cuda.nhwc=true"], None).recipe.cuda.nhwc


def test_operators_of_a_file_are_found_in_bodies_too(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17]> g (bool c, float[2] x) => (float[2] y) {
            z = Exp(x)
            y = If (c) <then_branch = t () => (float[2] a) { a = Relu(z) },
                        else_branch = e () => (float[2] b) { b = Neg(z) }> }"""
        ),
        path,
    )
    assert onnx_io.operators(path) == {"Exp", "If", "Relu", "Neg"}


def test_options_that_are_no_mapping():
    with pytest.raises(UsageError, match="engine is 'graph'; give options by name"):
        EngineOptions(engine="graph")
