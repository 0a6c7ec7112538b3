"""Pass `fp8`: which products, by what they are scaled, and that they compute what they say."""

import numpy as np
import pytest
from float8 import operators, rounded
from harness import apply, model, run_reference

from qgraph.context import Context
from qgraph.costs.table import CostTable, Row
from qgraph.errors import DataError, UsageError
from qgraph.passes.fp8.quantize import Fp8
from qgraph.passes.infer import InferShapes
from qgraph.target import target

K, N = 32, 48


def rand(*shape, seed=0, size=1.0):
    return (size * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


ARRAYS = {
    "g": 1 + rand(K, size=0.1),
    "b": rand(K, seed=1, size=0.1),
    "w": rand(K, N, seed=2, size=0.05),
    "v": rand(K, N, seed=3, size=7.0),
    "u": rand(N, K, seed=4),
    "bias": rand(N, seed=5),
    "odd": rand(K, 40, seed=6),
}
SMALL = {"min_elements": 1, "costs": False}


def samples(count=8, *, size=1.0, rows=6):
    return [{"x": rand(2, rows, K, seed=s, size=size)} for s in range(count)]


def net(body, *, lengths="2,6", width=N, opset=21, **arrays):
    """A network from x to y = -r, so that r is no graph output."""
    text = f"g (float[{lengths},{K}] x) => (float[{lengths},{width}] y) {{ {body} y = Neg(r) }}"
    known = ARRAYS | arrays
    used = {n: a for n, a in known.items() if f"{n})" in body or f"{n}," in body}
    return model(text, used, opset=opset)


def run(proto, data=None, **options):
    context = Context(target=target("cuda"), data=samples() if data is None else data)
    out, reports, graph = apply([InferShapes(), Fp8(**SMALL | options)], proto, context)
    return out, reports[-1], graph


def refusals(report):
    return {refusal.where: refusal.reason for refusal in report.refused}


def scale_of(array):
    largest = np.abs(array).max()
    return float(2.0 ** np.ceil(np.log2(largest / 448)))


def simulated(x, w, s=1.0):
    """x W with both operands rounded, in float64."""
    by = scale_of(w)
    return (rounded(x / s) * s) @ (rounded(w / by) * by)


def close(got, want):
    return np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def test_a_product_of_rounded_operands():
    out, report, graph = run(net("[layer] r = MatMul(x, w)"))
    assert operators(out) == {
        "Cast": 2,
        "DequantizeLinear": 1,
        "Transpose": 1,
        "MatMul": 1,
        "Neg": 1,
    }
    (feeds,) = samples(1)
    assert close(-run_reference(out, feeds)["y"], simulated(feeds["x"], ARRAYS["w"]))
    [codes] = [t for t in out.graph.initializer if t.name.endswith("_float8")]
    assert list(codes.dims) == [N, K] and len(codes.raw_data) == K * N
    assert graph.facts.plan.nodes["layer"] == (
        "fp8",
        "both operands in float8e4m3fn; input: a cast alone",
    )
    assert report.changed == 1 and graph.facts.quantized


def test_a_second_run_finds_nothing():
    out, _, _ = run(net("r = MatMul(x, w)"))
    _, report, _ = run(out)
    assert report.changed == 0


def test_readers_share_one_cast():
    body = "n = LayerNormalization(x, g, b) q = MatMul(n, w) k = MatMul(n, v) r = Add(q, k)"
    out, report, _ = run(net(body))
    assert operators(out)["Cast"] == 2 and report.changed == 2


@pytest.mark.parametrize("size", [1e-3, 1.0, 400.0, 1e4])
def test_inputs_of_any_size(size):
    """Nothing ahead to divide in: a Mul does it, where a cast alone would lose something."""
    data = samples(size=size)
    out, _, _ = run(net("r = MatMul(x, w)"), data)
    assert ("Mul" in operators(out)) == (size != 1.0)
    feeds, w = data[0], ARRAYS["w"]
    exact = feeds["x"].astype(np.float64) @ w
    got = -run_reference(out, feeds)["y"]
    assert np.linalg.norm(got - exact) < 0.05 * np.linalg.norm(exact)
    s = 2.0 * scale_of([np.abs(d["x"]).max() for d in data]) if size != 1.0 else 1.0
    assert close(got, simulated(feeds["x"], w, s))


def test_the_scale_goes_into_a_norm_that_nobody_else_reads():
    large = {"g": ARRAYS["g"] * 300, "b": ARRAYS["b"] * 300}
    body = (
        "[norm] n = LayerNormalization(x, g, b) [a] q = MatMul(n, w) k = MatMul(n, v) r = Add(q, k)"
    )
    out, _, graph = run(net(body, **large))
    assert operators(out)["Mul"] == 0
    assert graph.facts.plan.nodes["a"][1].endswith("input: divided by 8 in norm")
    (feeds,) = samples(1)
    got, exact = run_reference(out, feeds)["y"], run_reference(net(body, **large), feeds)["y"]
    assert np.linalg.norm(got - exact) < 0.05 * np.linalg.norm(exact)


def test_a_norm_that_a_shortcut_reads_keeps_its_scale():
    large = {"g": ARRAYS["g"] * 300, "b": ARRAYS["b"] * 300}
    body = "n = LayerNormalization(x, g, b) [a] q = MatMul(n, w) k = MatMul(q, u) r = Add(n, k)"
    out, _, graph = run(net(body, width=K, **large))
    assert operators(out)["Mul"] >= 1
    assert graph.facts.plan.nodes["a"][1].endswith("input: divided by 8 in a Mul")
    (feeds,) = samples(1)
    exact = run_reference(net(body, width=K, **large), feeds)["y"]
    got = run_reference(out, feeds)["y"]
    assert np.linalg.norm(got - exact) < 0.06 * np.linalg.norm(exact)


def test_a_weight_that_is_divided_is_rounded_after_that():
    """What enters the second product is divided in the first one's weight, which is in float8 too."""
    body = "[up] h = MatMul(x, v) a = Relu(h) [down] r = MatMul(a, u)"
    large = {"v": ARRAYS["v"] * 20}
    out, _, graph = run(net(body, width=K, **large))
    assert "in up" in graph.facts.plan.nodes["down"][1] and "Mul" not in operators(out)
    (feeds,) = samples(1)
    hidden = np.maximum(simulated(feeds["x"], large["v"]), 0)
    assert close(-run_reference(out, feeds)["y"], simulated(hidden, ARRAYS["u"], 16.0)) or close(
        -run_reference(out, feeds)["y"], simulated(hidden, ARRAYS["u"], 8.0)
    )


def test_shared_weights_and_inputs_in_any_order():
    """The weight's first reader stands before, its second behind a product that reads the same."""
    body = """a = MatMul(x, s)  n = Sigmoid(a)  m = MatMul(n, t)  e = MatMul(n, s)
        f = MatMul(x, t)  i = Add(m, e)  r = Add(i, f)"""
    arrays = {"s": rand(K, K, seed=7, size=0.2), "t": rand(K, K, seed=8, size=0.2)}
    proto = net(body, width=K, **arrays)
    out, report, _ = run(proto)
    assert report.changed == 4
    assert operators(out)["Cast"] == 4 and operators(out)["DequantizeLinear"] == 2
    (feeds,) = samples(1)
    exact, got = run_reference(proto, feeds)["y"], run_reference(out, feeds)["y"]
    assert np.linalg.norm(got - exact) < 0.05 * np.linalg.norm(exact)


REFUSED = {
    "no multiple": ("[a] r = MatMul(x, odd)", {"width": 40}, {}, "[32, 40] are no multiples of 16"),
    "small": ("[a] r = MatMul(x, w)", {}, {"min_elements": 5000}, "fewer than 5000 elements"),
    "opset": ("[a] r = MatMul(x, w)", {"opset": 18}, {}, "needs opset 19, the model has 18"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    body, shape, options, reason = REFUSED[name]
    _, report, graph = run(net(body, **shape), **options)
    assert report.changed == 0 and reason in refusals(report)["a"]
    assert graph.facts.plan.nodes["a"][0] == "float"


def test_a_product_that_makes_an_output_stays_unless_asked():
    text = f"g (float[2,6,{K}] x) => (float[2,6,{N}] y) {{ [a] m = MatMul(x, w) y = Add(m, bias) }}"
    proto = model(text, {n: ARRAYS[n] for n in ("w", "bias")})
    _, report, _ = run(proto)
    assert "fp8.head=true" in refusals(report)["a"]
    out, report, _ = run(proto, head=True)
    assert report.changed == 1 and operators(out)["Cast"] == 2


def test_excluded_nodes_stay():
    context = Context(target=target("cuda"), data=samples(), exclude=("a*",))
    proto = net("[a1] h = MatMul(x, w) [b1] r = MatMul(h, u)", width=K)
    _, reports, _ = apply([InferShapes(), Fp8(**SMALL)], proto, context)
    assert reports[-1].changed == 1 and refusals(reports[-1])["a1"] == "excluded by 'a*'"


def test_products_that_are_left_out():
    proto = net("[a1] h = MatMul(x, w) [b1] r = MatMul(h, u)", width=K)
    _, report, graph = run(proto, leave=("*1",))
    assert report.changed == 0 and "fp8.leave='*1'" in refusals(report)["b1"]
    assert graph.facts.plan.nodes["a1"][0] == "float"


def test_the_report_has_every_product():
    _, report, _ = run(net("[a] h = MatMul(x, w) [b] r = MatMul(h, u)", width=K))
    first, second = report.layers
    assert (first["name"], first["input"], first["input_scale"]) == ("a", "a cast alone", 1.0)
    assert first["weight_scale"] == scale_of(ARRAYS["w"]) and 0 < second["error"] < 2e-3


def test_without_data_or_kernel():
    proto = net("r = MatMul(x, w)")
    with pytest.raises(DataError, match="needs calibration data; pass --data"):
        apply(Fp8(), proto, Context(target=target("cuda")))
    for hardware in (None, target("cpu")):
        with pytest.raises(UsageError, match="float8 kernel; use target cuda"):
            apply(Fp8(), proto, Context(target=hardware, data=samples()))


# -- costs -----------------------------------------------------------------------------------------


@pytest.fixture
def costly(monkeypatch):
    """Times with which fp8 pays from 16 rows on."""

    def row(kernel, us):
        return Row(kernel=kernel, block=0, depth=K, width=N, rows=(1, 16, 256), us=us)

    table = CostTable(
        device="a GPU",
        engine="",
        date="",
        command="",
        products=(row("fp16", (10, 10, 20)), row("fp8", (20, 10, 10))),
    )
    monkeypatch.setattr("qgraph.passes.fp8.groups.load_costs", lambda name: table)
    monkeypatch.setattr("qgraph.costs.PAYS", 1.0)


@pytest.mark.parametrize(
    ("lengths", "batch", "changed"),
    [
        ("2,6", None, 0),
        ("2,12", None, 1),
        ("B,6", None, 1),
        ("B,6", 12, 0),
        ("B,S", 64, 1),
        ("2,12", 1, 1),
    ],
)
def test_measured_times_decide_where_the_number_of_rows_is_known(costly, lengths, batch, changed):
    rows = 12 if lengths.endswith("12") else 6
    proto = net("[a] r = MatMul(x, w)", lengths=lengths)
    _, report, _ = run(proto, samples(rows=rows), costs=True, batch=batch)
    assert report.changed == changed
    if not changed:
        assert refusals(report)["a"].startswith(
            "fp8 would take 1.07 times as long as fp16 with 12 rows (measured on a GPU)"
        )
    unknown = batch is None and not lengths[0].isdigit()
    assert bool(report.notes) == unknown


def test_the_shipped_times_leave_a_small_product_in_fp16():
    _, report, _ = run(net("[a] r = MatMul(x, w)"), costs=True)
    reason = refusals(report)["a"]
    assert reason.startswith("fp8 would take ") and "NVIDIA H100" in reason
