"""Progress, Ctrl-C, the timing cache and options, with a library that is really there."""

import importlib.util
import os
import signal
import threading
import time
import warnings

import numpy as np
import onnx
import pytest
from harness import model

from qgraph.errors import EngineError, UsageError
from qgraph.runtime.builder import BuildRequest
from qgraph.runtime.tensorrt.backend import TensorRt
from qgraph.runtime.tensorrt.device import device
from qgraph.runtime.tensorrt.library import MODULES, load_library
from qgraph.runtime.tensorrt.options import TensorRtOptions
from qgraph.runtime.tensorrt.progress import Phases, interruptible, monitor
from qgraph.runtime.tensorrt.refusals import refused_nodes
from qgraph.runtime.tensorrt.timing_cache import keep_timings, load_timings

needs_builder = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in MODULES),
    reason="neither tensorrt_rtx nor tensorrt is installed (tensorrt-rtx-cu13 on PyPI)",
)
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None
    or importlib.util.find_spec("tensorrt") is not None,
    reason="TensorRT-RTX (tensorrt-rtx-cu13 on PyPI) is not the library that is used",
)
CONV = "g (float[N,16,8,8] x) => (float[N,16,8,8] y) { y = Conv(x, w) }"


@pytest.fixture
def conv(tmp_path):
    weight = np.random.default_rng(0).standard_normal((16, 16, 1, 1)).astype(np.float32)
    path = tmp_path / "model.onnx"
    onnx.save(model(CONV, {"w": weight}), path)
    return path


def build(path, **options):
    shapes = () if "shapes" in options else ("x:1x16x8x8,2x16x8x8,8x16x8x8",)
    chosen = TensorRtOptions(**{"shapes": shapes, **options})
    return TensorRt().build(path, BuildRequest(options=chosen))


@needs_rtx
@pytest.mark.parametrize(
    "options",
    [
        {"sm": ("8.0",)},
        {"sm": ("8.6", "8.9", "12.0")},
        {"opt_level": 0},
        {"workspace_mb": 256},
        {"tf32": True},
        {"sparse_weights": True},
        {"weight_streaming": True},
        {"version_compatible": True},
        {"hardware": "any-ampere"},
        {"hardware": "same-capability"},
        {"shapes": ("x:1x16x8x8,2x16x8x8,8x16x8x8", "x:64x16x8x8")},
    ],
)
def test_an_engine_is_built_with_every_option(options, conv):
    record = build(conv, **options).record
    assert record["bytes"] > 1000
    assert set(options) <= set(record["options"])
    assert record["capabilities"] == list(options.get("sm", ("8.0", "8.6", "8.9", "12.0", "12.1")))
    assert len(record["profiles"]) == len(options.get("shapes", (1,)))


@needs_rtx
@pytest.mark.skipif(device() is not None, reason="there is a GPU")
def test_refit_needs_a_gpu(conv):
    with pytest.raises(EngineError, match=r"tensorrt\.refit: .* only where there is a GPU"):
        build(conv, refit=True)


@needs_builder
@pytest.mark.parametrize(
    ("shapes", "kind", "says"),
    [
        (("z:1x16x8x8",), UsageError, "unknown input 'z'"),
        (("x:1x16x8",), EngineError, r"input 'x' \[\?, 16, 8, 8\] can't be 1x16x8"),
        (("x:1x4x8x8",), EngineError, "can't be 1x4x8x8"),
    ],
)
def test_shapes_that_do_not_fit(shapes, kind, says, conv):
    with pytest.raises(kind, match=says):
        build(conv, shapes=shapes)


@needs_builder
def test_every_input_with_dynamic_axes_needs_shapes(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model("g (float[N] x, float[N] z) => (float[N] y) { y = Add(x, z) }"), path)
    with pytest.raises(EngineError, match=r"input 'z' \[\?\] has no shape to be built for"):
        build(path, shapes=("x:1,2,3",))
    assert len(build(path, shapes=("x:1,2,3;z:1,2,3",)).record["profiles"]) == 1


@needs_builder
def test_an_input_that_is_a_shape_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model("g (float[4] x, int64[2] s) => (float[A,B] y) { y = Reshape(x, s) }"), path)
    with pytest.raises(EngineError, match="input 's' decides shapes"):
        build(path, shapes=())


@needs_builder
def test_progress_goes_up_to_the_end(conv):
    seen = []
    options = TensorRtOptions(shapes=("x:1x16x8x8",))
    TensorRt().build(conv, BuildRequest(options=options, progress=lambda *each: seen.append(each)))
    percents = [done for _, done, _ in seen]
    assert percents == sorted(set(percents)) and percents[-1] > 50
    assert {(what, total) for what, _, total in seen} == {("building the engine", 100)}


def test_nested_phases_are_one_number():
    seen = []
    phases = Phases(lambda what, done, total: seen.append(done))
    phases.start("all", None, 4)
    assert phases.step("all", 0)
    phases.start("part", "all", 2)
    phases.step("part", 0)
    phases.finish("part")
    phases.step("all", 1)
    phases.step("unknown", 7)
    assert seen == [25, 37, 50]


@needs_builder
def test_the_builder_stops_when_it_is_told_to(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }"), path)
    library = load_library()
    log = library.logger()
    builder = library.module.Builder(log)
    network = builder.create_network(library.network_flags())
    parser = library.module.OnnxParser(network, log)
    assert parser.parse_from_file(str(path))
    config = builder.create_builder_config()
    phases = Phases(lambda *_: phases.cancel())
    config.progress_monitor = watcher = monitor(library, phases)
    assert builder.build_serialized_network(network, config) is None
    assert any("ancel" in line for line in log.errors) and watcher is not None


@pytest.fixture
def heeding_ctrl_c():
    """Whoever starts the tests in the background makes them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_ctrl_c_stops_the_builder_before_it_is_raised():
    phases = Phases(lambda *_: None)
    stopped = []

    def builds():
        phases.start("all", None, 1000)
        for index in range(1000):
            time.sleep(0.01)
            if not phases.step("all", index):
                stopped.append(index)
                return

    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        interruptible(builds, phases)
    assert stopped and stopped[0] < 900


@needs_builder
def test_times_of_kernels_are_kept_and_given_back(tmp_path, monkeypatch):
    # TensorRT-RTX takes a timing cache and ignores it, which is enough to try the way there and back.
    monkeypatch.setenv("QGRAPH_CACHE", str(tmp_path / "cache"))
    library = load_library()
    log = library.logger()
    builder = library.module.Builder(log)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        config = builder.create_builder_config()
        load_timings(library, config, None)
        keep_timings(library, config, None)
        assert [file.name[:15] for file in (tmp_path / "cache").iterdir()] == ["tensorrt-timing"]
        again = builder.create_builder_config()
        load_timings(library, again, None)
        assert bytes(again.get_timing_cache().serialize()) == bytes(
            config.get_timing_cache().serialize()
        )
        monkeypatch.setenv("QGRAPH_CACHE", "off")
        keep_timings(library, again, None)


@needs_builder
def test_the_parser_names_every_node_that_it_leaves_out(tmp_path):
    text = """g (float[4] x) => (float[A] y, float[4] z) {
        [fine] z = Relu(x)
        [first] a = Unique(x)
        [second] b = Det(c)
        y = Mul(a, b)
    }"""
    path = tmp_path / "m.onnx"
    onnx.save(model(text, {"c": np.eye(2, dtype=np.float32)}), path)
    found = refused_nodes(load_library(), path, 4)
    assert found is not None
    assert {each.index for each in found} >= {1, 2} and 0 not in {each.index for each in found}
    assert {each.op for each in found if each.reason} >= {"Unique", "Det"}
