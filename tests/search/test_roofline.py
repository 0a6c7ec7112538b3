"""Estimated times: bounds that no kernel beats, and what kernels a model has."""

import numpy as np
import onnx
import pytest
from harness import model
from hypothesis import given
from hypothesis import strategies as st

from qgraph import onnx_io
from qgraph.errors import UsageError
from qgraph.search.devices import load_device
from qgraph.search.devices.device import Measured
from qgraph.search.observed import observe
from qgraph.search.roofline import roofline_ms, work_ms
from qgraph.search.work import Work, names_to_observe, with_codes, works

_SIZE = st.floats(0, 1e15)
_RATE = st.floats(1e-2, 1e5)


@given(_SIZE, _SIZE, _SIZE, _RATE, _RATE, st.floats(0.01, 1), st.floats(0, 1e3))
def test_more_work_never_takes_less(operations, more, moved, tflops, gb_s, efficiency, launch_us):
    rates = {"tflops": tflops, "gb_s": gb_s, "efficiency": efficiency, "launch_us": launch_us}
    ms = roofline_ms(operations, moved, **rates)
    assert roofline_ms(operations + more, moved, **rates) >= ms
    assert roofline_ms(operations, moved + more, **rates) >= ms
    # Neither bound is beaten, whatever the efficiency.
    slack = 1 - 1e-9
    assert ms >= operations / (tflops * 1e9) * slack
    assert ms >= moved / (gb_s * 1e6) * slack
    assert ms >= launch_us * 1e-3 * slack
    assert roofline_ms(operations, moved, **{**rates, "efficiency": 1.0}) <= ms


def kernels(tmp_path, text, weights, feeds, fused=(), codes=()):
    path = tmp_path / "m.onnx"
    onnx.save(model(text, weights), path)
    graph = onnx_io.load(path)
    seen = with_codes(graph, observe(path, list(names_to_observe(graph)), feeds))
    return works(graph, seen, fused, codes)


def test_operations_and_bytes_of_a_convolution(tmp_path):
    weights = {"w": np.ones((8, 2, 3, 3), np.float32), "b": np.ones(8, np.float32)}
    text = """agraph (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) {
        c = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w, b)
        y = Relu (c)
    }"""
    feeds = {"x": np.ones((1, 4, 6, 6), np.float32)}
    conv, relu = kernels(tmp_path, text, weights, feeds)
    assert conv.operations == 2 * 8 * 36 * 2 * 9
    assert conv.moved == 4 * (4 * 36 + 8 * 2 * 9 + 8 + 8 * 36)
    assert conv.output == (1, 8, 6, 6) and conv.inputs == ((1, 4, 6, 6), (8, 2, 3, 3))
    assert relu.operations == 8 * 36 and relu.moved == 4 * 2 * 8 * 36
    (both,) = kernels(tmp_path, text, weights, feeds, fused=["Relu"])
    assert both.moved == conv.moved and both.operations == conv.operations + relu.operations


CODED = """agraph (float[N, 16] x) => (float[N, 16] y) {
    q = QuantizeLinear (x, s, z)
    d = DequantizeLinear (q, s, z)
    wd = DequantizeLinear (w, s, z)
    m = MatMul (d, wd)
    y = Tanh (m)
}"""


def test_codes_are_multiplied_only_where_the_backend_does(tmp_path):
    weights = {"w": np.ones((16, 16), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    feeds = {"x": np.ones((2, 16), np.float32)}
    coded = kernels(tmp_path, CODED, weights, feeds, codes=["int8"])
    assert [(w.op, w.precision) for w in coded] == [
        ("QuantizeLinear", "fp32"), ("MatMul", "int8"), ("Tanh", "fp32"),
    ]  # fmt: skip
    assert coded[1].moved == 2 * 16 + 16 * 16 + 4 * 2 * 16
    assert coded[1].product == (2, 16, 16, 0)
    apart = kernels(tmp_path, CODED, weights, feeds)
    assert [w.op for w in apart].count("DequantizeLinear") == 2
    assert next(w for w in apart if w.op == "MatMul").precision == "fp32"


def test_what_was_measured_goes_before_estimates():
    device = load_device("h100")
    work = Work("Conv", "int8", "fp32", 1e9, 1e6, ((1, 4), (4, 4)), (1, 4))
    row = Measured(backend="tensorrt", op="Conv", precision="int8", inputs=work.inputs,
                   output=(1, 4), ms=7.0)  # fmt: skip
    known = device.model_copy(update={"measured": (row,)})
    assert work_ms(known, "tensorrt", work) == 7.0 != work_ms(device, "tensorrt", work)
    with pytest.raises(LookupError, match="int8 is not run"):
        work_ms(device, "onnxruntime-cuda", work)
    # A table's own shape: 4096 x 4096 in fp16 by one row, docs/benchmarks/cuda.md.
    product = Work("MatMul", "fp16", "fp16", 1, 1, product=(1, 4096, 4096, 0))
    assert work_ms(device, "onnxruntime-cuda", product) == pytest.approx(0.0142, rel=0.01)
    few = Work("MatMulNBits", "int4-weights", "fp16", 1, 1, product=(1, 4096, 4096, 128))
    assert work_ms(device, "onnxruntime-cuda", few) == pytest.approx(0.53 * 0.0142, rel=0.02)


RATES = '[backends.a]\nruns = {fp16 = "fp16"}\nefficiency = 1\nlaunch_us = 0\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 3", "name"),
        ("", "name"),
        ('name = "x"\nbandwidth_gb_s = nan\n[tflops]\nfp32 = 1', "bandwidth_gb_s"),
        ('name = "x"\nbandwidth_gb_s = 1\n[tflops]\nfp32 = -1', "tflops.fp32"),
        ('name = "x"\nbandwidth_gb_s = 1\nspeed = 2\n[tflops]\nfp32 = 1\n' + RATES, "speed"),
        (
            'name = "x"\nbandwidth_gb_s = 1\n[tflops]\nfp32 = 1\n' + RATES,
            "give tflops.fp16",
        ),
        ("name = ", "TOML"),
    ],
)
def test_wrong_device_files_are_refused_in_one_line(text, message, tmp_path):
    path = tmp_path / "d.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_device(str(path))
    assert "\n" not in str(caught.value) and "d.toml" in str(caught.value)


def test_unknown_devices():
    with pytest.raises(UsageError, match="unknown device 'h10'.*h100"):
        load_device("h10")
    with pytest.raises(UsageError, match="can't be read"):
        load_device("/nowhere/d.toml")
