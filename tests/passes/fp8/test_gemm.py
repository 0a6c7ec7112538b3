"""Pass `gemm_float8`: the kernel computes what stood there before."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from float8 import operators, run_kernels
from harness import apply, check_stays, model, run_reference
from llamas import TINY, random_weights

import qgraph
from models.zoo.llama_onnx import build
from qgraph.artifact import MODEL
from qgraph.commands.options import with_weights
from qgraph.context import Context
from qgraph.errors import DataError, UsageError
from qgraph.flow import kernel_passes, quantizing_passes
from qgraph.passes.fp8.gemm import GemmFloat8
from qgraph.passes.fp8.quantize import Fp8
from qgraph.passes.half import Half
from qgraph.passes.infer import InferShapes
from qgraph.target import target

K, N = 32, 48


def rand(*shape, seed=0, size=1.0):
    return (size * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


ARRAYS = {
    "g": 1 + rand(K, size=0.1),
    "b": rand(K, seed=1, size=0.1),
    "w": rand(K, N, seed=2, size=0.05),
    "v": rand(K, N, seed=3, size=0.2),
    "u": rand(N, K, seed=4, size=0.2),
    "bias": rand(N, seed=5, size=0.1),
}
BODY = """n = LayerNormalization(x, g, b)  [gate] p = MatMul(n, w)  [up] q0 = MatMul(n, v)
    q = Add(q0, bias)  s = Sigmoid(p)  h = Mul(s, q)  [down] r = MatMul(h, u)  y = Add(r, x)"""
HALF = [InferShapes(), Fp8(min_elements=1, costs=False, head=True), Half()]


def net(lengths="2,6"):
    text = f"g (float[{lengths},{K}] x) => (float[{lengths},{K}] y) {{ {BODY} }}"
    return model(text, ARRAYS)


def samples(lengths, count=8):
    shape = [int(n) if n.isdigit() else 5 for n in lengths.split(",")]
    return [{"x": rand(*shape, K, seed=s)} for s in range(count)]


def lowered(lengths, passes=HALF):
    data = samples(lengths)
    context = Context(target=target("cuda"), data=data)
    before, _, _ = apply(passes, net(lengths), context)
    out, reports, graph = apply([InferShapes(), GemmFloat8()], before, context)
    assert reports[-1].changed == 3
    return before, out, data[0], graph


def deviation(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("lengths", ["2,6", "12", "B,6", "B,S", "2,3,S"])
def test_the_kernel_computes_what_stood_there(lengths):
    before, out, feeds, _ = lowered(lengths)
    # Both in one evaluator: another one rounds norms in fp16 differently, and so some codes.
    want, got = run_kernels(before, feeds)["y"], run_kernels(out, feeds)["y"]
    assert got.shape == want.shape and got.dtype == want.dtype
    assert deviation(got, want) < 2e-3
    assert deviation(got, run_reference(before, feeds)["y"]) < 2e-2
    exact = run_reference(net(lengths), feeds)["y"]
    assert 1e-3 < deviation(want, exact) < 0.05


def test_in_float32_only_the_order_of_sums_differs():
    before, out, feeds, _ = lowered("B,S", HALF[:-1])
    got, want = run_kernels(out, feeds)["y"], run_reference(before, feeds)["y"]
    assert deviation(got, want) < 1e-6


def test_nothing_but_a_cast_stands_in_front_of_the_kernel():
    _, out, _, graph = lowered("2,6")
    found = operators(out)
    # Two for the graph's input and output, two for codes: gate and up share one.
    assert found["Cast"] == 4 and found["GemmFloat8"] == 3
    assert not {"MatMul", "DequantizeLinear", "Transpose", "Shape"} & set(found)
    assert found["Reshape"] == 2 + 3
    kinds = {t.name: t.data_type for t in out.graph.initializer}
    for node in out.graph.node:
        if node.op_type == "GemmFloat8":
            assert kinds[node.input[1]] == onnx.TensorProto.FLOAT8E4M3FN
            assert [kinds[node.input[i]] for i in (3, 4)] == [onnx.TensorProto.FLOAT] * 2
    names = {node.name: node.op_type for node in out.graph.node}
    assert {names[n] for n in ("gate", "up", "down")} == {"GemmFloat8"}
    assert graph.facts.plan is None  # given by the passes before, which another graph had


def test_matrices_need_no_reshape():
    _, out, _, _ = lowered("12")
    assert "Reshape" not in operators(out)


def test_shapes_are_computed_once_for_all_that_share_codes():
    _, out, _, _ = lowered("B,S")
    assert operators(out)["Shape"] == 2  # one for gate and up, one for down


def test_onnxruntime_lacks_nothing_but_the_kernel():
    """Types and shapes pass its checks; only a GPU goes further."""
    _, out, _, _ = lowered("B,S")
    with pytest.raises(Exception, match="Could not find an implementation for GemmFloat8"):
        ort.InferenceSession(out.SerializeToString(), providers=["CPUExecutionProvider"])


PLAIN = {
    "float": "y = MatMul(x, f)",
    "a weight that is not transposed": "c = Cast <to = 17> (x)  h = Cast <to = 1> (c)"
    " d = DequantizeLinear(e, s)  y = MatMul(h, d)",
    "scales by channel": "c = Cast <to = 17> (x)  h = Cast <to = 1> (c)"
    " d = DequantizeLinear <axis = 0> (e, t)  k = Transpose(d)  y = MatMul(h, k)",
    "float data": "d = DequantizeLinear(e, s)  k = Transpose(d)  y = MatMul(x, k)",
}


@pytest.mark.parametrize("name", PLAIN)
def test_other_products_stay(name):
    codes = rand(K, K).astype(onnx.helper.tensor_dtype_to_np_dtype(17))
    arrays = {"f": rand(K, K), "e": codes, "s": np.float32(0.5), "t": rand(K) ** 2 + 1}
    used = {k: a for k, a in arrays.items() if f"{k})" in PLAIN[name] or f"({k}," in PLAIN[name]}
    text = f"g (float[4,{K}] x) => (float[4,{K}] y) {{ {PLAIN[name]} }}"
    check_stays([InferShapes(), GemmFloat8()], model(text, used))


# -- the target ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("QGRAPH_CACHE", "off")


def windows(count=8):
    rng = np.random.default_rng(0)
    return [{"input_ids": rng.integers(0, TINY.vocabulary, (1, 20))} for _ in range(count)]


SETTINGS = ["fp8.min_elements=1", "fp8.costs=false"]


def compiled(tmp_path, *settings):
    return qgraph.compile(
        build(TINY, random_weights()),
        output=tmp_path / "out",
        target="cuda",
        precision="fp8",
        data=windows(),
        settings=[*SETTINGS, *settings],
    )


def test_a_decoder_compiles_and_is_verified_without_a_gpu(tmp_path):
    artifact = compiled(tmp_path)
    manifest = artifact.manifest
    assert manifest.nodes["fp8"] == 7 * TINY.layers and not manifest.warnings
    assert manifest.accuracy.outputs[0]["sqnr_db"] > 15
    assert "cuda" in manifest.not_timed
    assert not {name for name in manifest.files if "simulated" in name or "float" in name}
    proto = onnx.load(artifact.path / MODEL)
    assert operators(proto)["GemmFloat8"] == 7 * TINY.layers
    # 4 of 7 products read something of their own; q, k, v and gate, up share.
    to_codes = [
        n
        for n in proto.graph.node
        if n.op_type == "Cast" and n.attribute[0].i == onnx.TensorProto.FLOAT8E4M3FN
    ]
    assert len(to_codes) == 4 * TINY.layers


def test_without_the_kernel_the_artifact_is_plain_onnx(tmp_path):
    artifact = compiled(tmp_path, "gemm_float8.enabled=false")
    proto = onnx.load(artifact.path / MODEL)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    (feeds,) = windows(1)
    got = run_reference(proto, feeds)["logits"]
    exact = run_reference(build_proto(), feeds)["logits"]
    assert deviation(got, exact) < 0.2


def build_proto():
    from qgraph import onnx_io
    from qgraph.graph import Graph

    return onnx_io.to_proto(Graph(build(TINY, random_weights())))


def test_inputs_in_integers(tmp_path):
    """Codes of the input's own come in front: those of the model are none that one could feed."""
    text = """g (float[4,32] x) => (float[4,32] y) { [a] m = MatMul(x, w) [b] n = MatMul(m, v)
        y = Neg(n) }"""
    proto = model(text, {"w": rand(32, 32), "v": rand(32, 32, seed=1)})
    artifact = qgraph.compile(
        proto,
        output=tmp_path / "o",
        target="cuda",
        precision="fp8",
        data=[{"x": rand(4, 32, seed=seed, size=1.0)} for seed in range(8)],
        io="uint8",
        settings=SETTINGS,
    )
    assert artifact.manifest.nodes["fp8"] == 2
    assert artifact.manifest.accuracy.outputs[0]["sqnr_db"] > 20
    out = onnx.load(artifact.path / MODEL)
    assert out.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_which_passes_run():
    cuda, trt = target("cuda"), target("tensorrt")
    names = [each.name for each in quantizing_passes("fp8", {}, cuda)]
    assert names == ["linear_to_matmul", "fp8", "drop_dead", "half"]
    assert [each.name for each in kernel_passes("fp8", {}, cuda)] == ["gemm_float8"]
    assert "insert_qdq" in [each.name for each in quantizing_passes("fp8", {}, trt)]
    assert kernel_passes("fp8", {}, trt) == kernel_passes("int4", {}, cuda) == []


def test_the_batch_on_the_command_line():
    settings, precision = with_weights([], "fp8", None, None, None, 64)
    assert "fp8.batch=64" in settings and precision == "fp8"


def test_fp8_needs_data_and_a_target_that_has_it(tmp_path):
    decoder = build(TINY, random_weights())
    with pytest.raises(DataError, match="fp8 for target 'cuda' needs calibration data"):
        qgraph.compile(decoder, output=tmp_path / "o", target="cuda", precision="fp8")
    with pytest.raises(UsageError, match="target 'cpu' has no fp8"):
        qgraph.compile(decoder, output=tmp_path / "o", target="cpu", precision="fp8")
