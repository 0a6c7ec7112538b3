import numpy as np
import onnx
import pytest
from harness import model
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import qgraph
from qgraph import onnx_io
from qgraph.context import Context
from qgraph.encoding import Spec, dequantize, encode_range, quantize
from qgraph.encodings_json import FORMAT, Encodings, Given, read_encodings
from qgraph.errors import DataError
from qgraph.facts import Placement, Plan
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.insert_qdq import InsertQDQ
from qgraph.passes.plan import PlanQuantization
from qgraph.passes.quantize_weights import QuantizeWeights
from qgraph.pipeline import Pipeline
from qgraph.target import target


def network():
    rng = np.random.default_rng(0)
    return model(
        """net (float[n, 3, 8, 8] image) => (float[n, 4, 4, 4] y) {
          c = Conv<pads = [1, 1, 1, 1]>(image, w)
          r = Relu(c)
          m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
          c2 = Conv<pads = [1, 1, 1, 1]>(m, w2)
          r2 = Relu(c2)
          y = Sigmoid(r2)
        }""",
        {
            "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
            "w2": rng.standard_normal((4, 4, 3, 3)).astype(np.float32),
        },
    )


def samples(count=6):
    rng = np.random.default_rng(1)
    return [{"image": a} for a in rng.standard_normal((count, 1, 3, 8, 8)).astype(np.float32)]


def own(**tensors):
    listed = [{"name": name, **entry} for name, entry in tensors.items()]
    return {"format": FORMAT, "schema_version": 1, "tensors": listed}


def run(source, data=None, *, whole=False):
    graph = onnx_io.load(network())
    context = Context(target=target("cpu"), data=data, encodings=read_encodings(source))
    passes = [PlanQuantization(), Calibrate(observer="minmax")]
    passes += [QuantizeWeights(), InsertQDQ()] if whole else []
    stages = Pipeline(passes).run(graph, context)
    return graph, stages[1].report


def uint8(scale=0.05, zero_point=0, **more):
    return {"dtype": "uint8", "scale": scale, "zero_point": zero_point, **more}


ALL = {"image": uint8(0.04, 120), "r": uint8(0.05), "m": uint8(0.05), "r2": uint8(0.07)}


def quantizers(graph):
    """By name of the value quantized, (scale, zero point) of its QuantizeLinear."""
    proto = onnx_io.to_proto(graph)
    constants = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    return {
        node.input[0]: (constants[node.input[1]], constants[node.input[2]])
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear"
    }


def test_what_the_file_says_stands_in_the_model():
    graph, report = run(own(**ALL), whole=True)
    assert not report.warnings
    found = sorted((float(s), int(z), z.dtype.name) for s, z in quantizers(graph).values())
    assert found[0] == (float(np.float32(0.04)), 120, "uint8")
    assert {each[0] for each in found} == {float(np.float32(s)) for s in (0.04, 0.05, 0.07)}
    again, _ = run(own(**(ALL | {"r2": uint8(0.0700001)})), whole=True)
    edited = sorted(float(s) for s, _ in quantizers(again).values())
    assert edited[-1] == float(np.float32(0.0700001)) != found[-1][0]
    assert edited[:-1] == [each[0] for each in found[:-1]]


def test_only_tensors_that_the_file_leaves_out_are_calibrated():
    graph, _ = run(own(image=uint8(0.04, 120), r2=uint8(0.07)), samples())
    plain = onnx_io.load(network())
    passes = [PlanQuantization(), Calibrate(observer="minmax")]
    Pipeline(passes).run(plain, Context(target=target("cpu"), data=samples()))
    encodings, want = graph.facts.encodings, plain.facts.encodings
    assert float(encodings["image"].scale) == np.float32(0.04)
    assert float(encodings["r2"].scale) == np.float32(0.07)
    for name in ("r", "m"):
        assert encodings[name].scale == want[name].scale != np.float32(0.05)
    assert encodings["r"] is encodings["m"]
    assert graph.facts.ranges.keys() == encodings.keys()


def test_without_data_what_is_missing_is_named():
    with pytest.raises(DataError) as caught:
        run(own(image=uint8(0.04, 120), r=uint8()))
    assert str(caught.value) == (
        "encodings: has no encoding for 'r2'; add them, or pass --data to calibrate them"
    )


def test_one_member_settles_its_group():
    graph, _ = run(own(**{k: v for k, v in ALL.items() if k != "m"}))
    assert graph.facts.encodings["m"] is graph.facts.encodings["r"]
    with pytest.raises(DataError) as caught:
        run(own(**(ALL | {"m": uint8(0.06)})))
    assert "tensor 'r': differs from 'm'" in str(caught.value)


def test_names_without_use_are_warned_of_once_and_all_explained():
    extra = {f"gone{i}": uint8() for i in range(5)} | {"c": uint8(), "y": uint8()}
    _, report = run(own(**ALL, **extra))
    gone, idle = report.warnings
    assert "'gone0', 'gone1', 'gone2' and 2 more not used: the optimized graph" in gone
    assert "'c', 'y' not used: float in this plan" in idle
    reasons = {each.where: each.reason for each in report.refused}
    assert reasons.keys() == extra.keys()
    assert reasons["gone4"] == "the optimized graph has no such value"
    assert reasons["y"] == "it stays in float: graph output"


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"dtype": "int8", "scale": 0.1}, "tensor 'r2': is int8, the target takes uint8"),
        ({"dtype": "int16", "range": [0, 1]}, "tensor 'r2': is int16, the target takes uint8"),
        (uint8(0.1, 300), "tensor 'r2': zero_point 300 is outside of uint8"),
        (uint8(0.1, -1), "zero_point -1 is outside of uint8"),
    ],
)
def test_what_the_target_refuses(entry, what):
    with pytest.raises(DataError) as caught:
        run(own(**(ALL | {"r2": entry})))
    assert what in str(caught.value) and str(caught.value).startswith("encodings, tensor 'r2'")


def test_ranges_alone_are_encoded_as_calibration_would():
    ranges = {"image": [-4, 4], "r": [0, 3], "m": [0, 5], "r2": [0, 9]}
    graph, report = run(own(**{name: {"range": span} for name, span in ranges.items()}))
    spec = Spec("uint8", symmetric=False)
    want = {"image": (-4, 4), "r": (0, 5), "m": (0, 5), "r2": (0, 9)}
    for name, span in want.items():
        expected = encode_range(*span, spec)
        assert graph.facts.encodings[name].scale == expected.scale
        assert graph.facts.encodings[name].zero_point == expected.zero_point
    assert not report.warnings
    table, _ = run({name: span for name, span in ranges.items()})
    assert all(
        table.facts.encodings[name].scale == graph.facts.encodings[name].scale for name in ranges
    )


def test_an_edited_range_that_the_scale_contradicts_is_told():
    span = [-1.0, 2.0]
    true = encode_range(*span, Spec("uint8", symmetric=False))
    fits = uint8(float(true.scale), int(true.zero_point), range=span)
    assert not run(own(**(ALL | {"r2": fits})))[1].warnings
    (line,) = run(own(**(ALL | {"r2": fits | {"range": [-1.0, 3.0]}})))[1].warnings
    assert "scale and range of 'r2' disagree; the scale counts" in line


# -- AIMET's grid ----------------------------------------------------------------------------------


def aimet_simulation(x, scale, offset, bits):
    """AIMET's own arithmetic: codes from 0, x = (code + offset) * scale."""
    codes = np.clip(np.rint(x / np.float32(scale)) - offset, 0, 2**bits - 1)
    return (codes + offset) * np.float32(scale)


@pytest.mark.parametrize(
    ("spec", "offset", "flag"),
    [
        (Spec("uint8", symmetric=False), -85, False),
        (Spec("uint8", symmetric=False), 0, False),
        (Spec("int8", symmetric=False), -85, False),
        (Spec("int8", symmetric=True), -128, True),
        (Spec("uint8", symmetric=False), -128, True),
        (Spec("uint16", symmetric=False), -20000, False),
        (Spec("int16", symmetric=True), -32768, True),
    ],
)
def test_aimet_encodings_mean_the_same_numbers_here(spec, offset, flag):
    bits = 16 if "16" in spec.dtype else 8
    plan = Plan(activations={"x": Placement(spec, "x", "")})
    entry = {"bw": bits, "dtype": "INT", "is_sym": flag, "scale": [0.013], "offset": [offset]}
    source = {"version": "1.0.0", "activation_encodings": [{"name": "x", **entry}]}
    graph = onnx_io.load(model("net (float[n] x) => (float[n] y) { y = Relu(x) }"))
    graph.facts.plan = plan
    Calibrate().run(graph, Context(encodings=read_encodings(source)))
    x = np.random.default_rng(0).uniform(-3, 5, 5000).astype(np.float32)
    encoding = graph.facts.encodings["x"]
    found = dequantize(quantize(x, encoding), encoding)
    np.testing.assert_allclose(found, aimet_simulation(x, 0.013, offset, bits), rtol=0, atol=1e-6)


def test_aimet_zero_points_that_a_symmetric_target_refuses():
    plan = Plan(activations={"x": Placement(Spec("int8", symmetric=True), "x", "")})
    graph = onnx_io.load(model("net (float[n] x) => (float[n] y) { y = Relu(x) }"))
    graph.facts.plan = plan
    given = Encodings("a.json", "AIMET 1.0.0", {"x": Given(None, 0.1, 85, None, 8, False)})
    with pytest.raises(DataError, match="zero_point is -43, the target takes int8 with zero point"):
        Calibrate().run(graph, Context(encodings=given))
    # -127 is AIMET's symmetric grid without its lowest code: the same numbers with zero point 0.
    strict = Encodings("a.json", "AIMET 1.0.0", {"x": Given(None, 0.1, 127, None, 8, True)})
    Calibrate().run(graph, Context(encodings=strict))
    assert int(graph.facts.encodings["x"].zero_point) == 0


def test_foreign_files_may_differ_within_a_group():
    def aimet(scale, offset):
        return [{"bitwidth": 8, "is_symmetric": "False", "scale": scale, "offset": offset}]

    entries = {"image": aimet(0.04, -120), "r": aimet(0.05, 0), "m": aimet(0.06, 0)}
    graph, report = run({"activation_encodings": entries | {"r2": aimet(0.07, 0)}})
    assert any("'r', 'm' share one encoding here" in line for line in report.warnings)
    want = encode_range(0, 255 * float(np.float32(0.06)), Spec("uint8", symmetric=False))
    assert graph.facts.encodings["r"].scale == want.scale


# -- whole compiles --------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr("qgraph.engine_choice.BUDGET_S", 0.05)
    monkeypatch.setattr("qgraph.runtime.choose._ROUNDS", 1)
    onnx.save(network(), tmp_path / "net.onnx")
    arrays = np.concatenate([each["image"] for each in samples(20)])
    np.savez(tmp_path / "d.npz", image=arrays)
    return tmp_path


def test_compiling_with_the_calibrated_encodings_is_compiling(files):
    found = qgraph.calibrate(files / "net.onnx", data=files / "d.npz")
    found.save(files / "e.json")
    options = {"data": files / "d.npz"}
    plain = qgraph.compile(files / "net.onnx", output=files / "a", **options)
    for source in (files / "e.json", found.document, files / "a" / "encodings.json"):
        given = qgraph.compile(files / "net.onnx", output=files / "b", encodings=source, **options)
        assert given.model_path.read_bytes() == plain.model_path.read_bytes()
        assert not [line for line in given.manifest.warnings if "encodings" in line]
        stage = next(each for each in given.manifest.stages if each.name == "calibrate")
        assert stage.notes and stage.notes[0].startswith("4 of 4 encodings from ")
    again = qgraph.calibrate(files / "net.onnx", data=files / "d.npz")
    assert again.document == found.document


def test_an_edited_file_is_honoured_in_the_artifact(files):
    document = qgraph.calibrate(files / "net.onnx", data=files / "d.npz").document
    entry = next(each for each in document["tensors"] if each["name"] == "image")
    entry["scale"] = 0.123
    made = qgraph.compile(
        files / "net.onnx", output=files / "a", data=files / "d.npz", encodings=document
    )
    graph = onnx_io.load(made.model_path)
    scale, zero = quantizers(graph)["image"]
    assert scale == np.float32(0.123) and int(zero) == entry["zero_point"]
    (line,) = [line for line in made.manifest.warnings if "encodings" in line]
    assert "scale and range of 'image' disagree" in line
    # And the model computes with it: on a grid of 0.123.
    model_proto = onnx.load(made.model_path)
    dq = next(n for n in model_proto.graph.node if n.op_type == "DequantizeLinear"
              and n.input[0].startswith("image"))  # fmt: skip
    del model_proto.graph.output[:]
    model_proto.graph.output.append(onnx.helper.make_tensor_value_info(dq.output[0], 1, None))
    x = samples(1)[0]["image"]
    (seen,) = ReferenceEvaluator(model_proto).run(None, {"image": x})
    steps = seen / np.float32(0.123)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)


def test_encodings_of_another_graph_are_told(files):
    document = qgraph.calibrate(files / "net.onnx", data=files / "d.npz").document
    other = network()
    weight = numpy_helper.to_array(other.graph.initializer[0]) * np.float32(1.01)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(other, files / "other.onnx")

    def warned(name, source, **options):
        made = qgraph.compile(
            files / name, output=files / "o", data=files / "d.npz", encodings=source, **options
        )
        return [line for line in made.manifest.warnings if "another graph" in line]

    assert not warned("net.onnx", document)
    assert "another model" in warned("other.onnx", document)[0]
    document["repairs"]["equalize_layers"]["enabled"] = True
    document["graph"] = "0" * 32
    (line,) = warned("net.onnx", document)
    assert "the repairs equalize_layers had other options" in line
    del document["graph"]
    assert not warned("other.onnx", document)


def test_without_data_passes_that_need_some_are_left_out_and_named(files):
    document = qgraph.calibrate(files / "net.onnx", data=files / "d.npz").document
    made = qgraph.compile(
        files / "net.onnx", output=files / "a", encodings=document,
        settings=["correct_bias.enabled=true", "smooth.enabled=true"],
    )  # fmt: skip
    assert made.manifest.precision == "int8"
    assert any("left out: smooth" in x and "correct_bias" in x for x in made.manifest.warnings)
    assert made.manifest.recipe["passes"]["correct_bias"]["enabled"] is False
    document["tensors"].pop()
    with pytest.raises(DataError, match="has no encoding for 'r2'"):
        qgraph.compile(files / "net.onnx", output=files / "b", encodings=document)
    assert not (files / "b").exists()
