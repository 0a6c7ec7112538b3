from dataclasses import asdict

import pytest
from runtime_models import small_cnn

from qgraph.errors import EngineError, QGraphError, UsageError
from qgraph.runtime import backend, backends
from qgraph.runtime.backend import EngineOptions, Tunable
from qgraph.runtime.onnxruntime_cuda import CudaOptions
from qgraph.runtime.options import own_options, read_options

CUDA = backend("onnxruntime-cuda")


def test_options_come_from_json_and_go_to_the_provider():
    chosen = own_options(CudaOptions, {"graph": True, "conv_search": "EXHAUSTIVE"}, "e")
    assert chosen == CudaOptions(graph=True, conv_search="EXHAUSTIVE")
    assert chosen.provider(graph=False) == (
        "CUDAExecutionProvider",
        {
            "use_tf32": "0",
            "prefer_nhwc": "0",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "enable_cuda_graph": "0",
        },
    )
    assert CudaOptions(tf32=True, nhwc=True).provider(graph=True)[1]["use_tf32"] == "1"


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
    labels = CUDA.variants("fp16")
    assert list(labels)[:4] == ["", "nhwc", "graph", "nhwc, graph"]
    for options in labels.values():
        own_options(CudaOptions, options.engine, "e")


def test_cuda_options_are_checked_before_anything_is_loaded():
    with pytest.raises(UsageError, match="option of onnxruntime-cuda 'nwhc'; did you mean 'nhwc'"):
        CUDA.open(small_cnn().SerializeToString(), EngineOptions(engine={"nwhc": True}))
    with pytest.raises(EngineError, match="use true or false"):
        CUDA.open(small_cnn().SerializeToString(), EngineOptions(engine={"nhwc": 1}))


def test_options_that_are_no_mapping():
    with pytest.raises(UsageError, match="engine is 'graph'; give options by name"):
        EngineOptions(engine="graph")
