from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from harness import model

from qgraph import debug, onnx_io
from qgraph.errors import AccuracyError, EngineError, ModelError, UsageError
from qgraph.graph import Graph
from qgraph.graph_text import graph_text
from qgraph.pipeline import Pass, PassReport, Pipeline, Stage
from qgraph.structure import check_structure

NET = """net (float[n, 4] x) => (float[n, 4] y) {
  a = Mul(x, w)
  b = Relu(a)
  y = Softmax<axis = 1>(b)
}"""
WEIGHT = np.array([1.0, 2.0, 3.0, 4.0], np.float32)


@dataclass(frozen=True)
class Scale(Pass):
    """Scale the weight: wrong, if it claims to be exact."""

    by: float = 1.5
    name: ClassVar[str] = "scale"

    def run(self, graph, context):
        report = PassReport()
        value = graph.main.initializers["w"]
        scaled = graph.array(value) * np.float32(self.by)
        value.const_value = ir.tensor(scaled.astype(np.float32), name="w")
        report.did("w")
        return report


@dataclass(frozen=True)
class Rounding(Scale):
    """The same, and honest about it."""

    name: ClassVar[str] = "rounding"
    numerics: ClassVar[str] = "rounding"


@dataclass(frozen=True)
class Nothing(Pass):
    """Change nothing."""

    name: ClassVar[str] = "nothing"

    def run(self, graph, context):
        return PassReport()


@dataclass(frozen=True)
class Twist(Pass):
    """Break the graph in a way given by `how`."""

    how: str = ""
    name: ClassVar[str] = "twist"

    def run(self, graph, context):
        report = PassReport()
        mul, relu, softmax = graph.nodes()
        if self.how == "order":
            graph.main.remove(mul, safe=False)
            graph.main.append(mul)
            relu.replace_input_with(0, mul.outputs[0])
        elif self.how == "names":
            relu.name = mul.name
        elif self.how == "values":
            relu.outputs[0].name = "a"
        elif self.how == "data":
            graph.main.initializers["w"].const_value = None
        elif self.how == "axis":
            softmax.attributes["axis"] = ir.AttrString("axis", "one")
        elif self.how == "unwritten":
            relu.replace_input_with(0, ir.Value(name="ghost"))
        report.did(self.how)
        return report


@pytest.fixture
def path(tmp_path: Path) -> Path:
    proto = model(NET, {"w": WEIGHT})
    for node in proto.graph.node:
        node.name = node.op_type
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def run(path: Path, passes: list[Pass], *hooks) -> Graph:
    graph = onnx_io.load(path)
    Pipeline(passes, hooks=hooks).run(graph)
    return graph


def test_dump_writes_every_pass_in_order(path, tmp_path):
    run(path, [Nothing(), Scale(2.0), Rounding(0.5)], debug.dump_ir(tmp_path / "new" / "ir"))
    files = sorted((tmp_path / "new" / "ir").iterdir())
    assert [f.name for f in files] == ["001_nothing.onnx", "002_scale.onnx", "003_rounding.onnx"]
    weights = [onnx.numpy_helper.to_array(onnx.load(f).graph.initializer[0])[0] for f in files]
    assert weights == [1.0, 2.0, 1.0]


def test_dump_counts_on_over_two_pipelines(path, tmp_path):
    hook = debug.dump_ir(tmp_path / "ir")
    run(path, [Nothing()], hook)
    run(path, [Nothing()], hook)
    assert {f.name for f in (tmp_path / "ir").iterdir()} == {"001_nothing.onnx", "002_nothing.onnx"}


def test_dump_replaces_older_dumps_and_nothing_else(path, tmp_path):
    folder = tmp_path / "ir"
    run(path, [Nothing(), Nothing()], debug.dump_ir(folder))
    run(path, [Nothing()], debug.dump_ir(folder))
    assert [f.name for f in folder.iterdir()] == ["001_nothing.onnx"]
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="thesis.txt"):
        debug.dump_ir(folder)
    assert (folder / "thesis.txt").exists() and (folder / "001_nothing.onnx").exists()


def test_dump_into_a_file(path):
    with pytest.raises(UsageError, match="can't dump here"):
        debug.dump_ir(path)


def test_print_after_names_passes_or_all(path):
    written: list[str] = []
    run(path, [Nothing(), Scale()], debug.print_after(["scale"], written.append))
    assert len(written) == 1 and "after scale" in written[0]
    assert "y = Softmax(b) {axis=1}  # Softmax" in written[0]
    assert "constant w float32[4] = [1.5, 3.0, 4.5, 6.0]" in written[0]
    run(path, [Nothing(), Scale()], debug.print_after(["all"], written.append))
    assert len(written) == 3


def test_collect_and_stop(path):
    stages: list[Stage] = []
    with pytest.raises(debug.Stopped) as stopped:
        run(
            path, [Nothing(), Scale(), Rounding()], debug.collect(stages), debug.stop_after("scale")
        )
    assert [s.name for s in stages] == ["nothing", "scale"]
    assert stopped.value.graph.array(stopped.value.graph.main.initializers["w"])[0] == 1.5


@pytest.mark.parametrize("level", ["structure", "onnx", "numeric"])
def test_verify_lets_good_passes_through(path, level):
    run(path, [Nothing(), Scale(1.0)], debug.verify(level, path))


@pytest.mark.parametrize("level", ["structure", "onnx", "numeric"])
@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("order", "before it is written"),
        ("names", "two nodes are called 'Mul'"),
        ("values", "two values are called 'a'"),
        ("data", "'w' has no data"),
        ("unwritten", "which nothing writes"),
    ],
)
def test_every_level_sees_a_broken_structure(path, level, how, what):
    with pytest.raises(ModelError) as error:
        run(path, [Nothing(), Twist(how)], debug.verify(level, path))
    assert "pass 'twist' broke the model" in str(error.value) and what in str(error.value)


def test_the_checker_sees_what_structure_does_not(path):
    run(path, [Twist("axis")], debug.verify("structure", path))
    with pytest.raises(ModelError, match="pass 'twist' broke the model"):
        run(path, [Twist("axis")], debug.verify("onnx", path))


def test_numbers_name_the_first_pass_that_broke_them(path):
    run(path, [Scale()], debug.verify("onnx", path))
    with pytest.raises(AccuracyError) as error:
        run(path, [Nothing(), Scale(1.0), Scale(1.01), Nothing()], debug.verify("numeric", path))
    message = str(error.value)
    assert "pass 'scale' broke the model: output 'y' differs from the original by" in message


@pytest.mark.parametrize(("by", "passes"), [(1 + 2e-5, True), (1 + 2e-3, False)])
def test_the_limit_is_a_ten_thousandth_of_the_range(path, by, passes):
    """Softmax of inputs around 4 has a range near 1, and its slope is at most a quarter."""
    hook = debug.verify("numeric", path)
    if passes:
        run(path, [Scale(by)], hook)
    else:
        with pytest.raises(AccuracyError):
            run(path, [Scale(by)], hook)


def test_a_rounding_pass_may_change_numbers_and_the_next_is_held_to_them(path):
    run(path, [Rounding(), Scale(1.0)], debug.verify("numeric", path))
    with pytest.raises(AccuracyError, match="from the graph after 'rounding'"):
        run(path, [Rounding(), Scale(1 / 1.5)], debug.verify("numeric", path))


def test_integer_outputs_must_be_equal(tmp_path):
    text = "net (float[3] x) => (int64[1] y) { a = Mul(x, w)\n y = ArgMax(a) }"
    onnx.save(model(text, {"w": np.ones(3, np.float32)}), tmp_path / "m.onnx")

    @dataclass(frozen=True)
    class Flip(Scale):
        by: float = -1.0

    with pytest.raises(AccuracyError, match=r"in 100\.00% of its elements"):
        run(tmp_path / "m.onnx", [Flip()], debug.verify("numeric", tmp_path / "m.onnx"))


def test_an_unknown_level(path):
    with pytest.raises(UsageError, match="did you mean 'numeric'"):
        debug.verify("numerics", path)


def test_a_model_that_the_reference_cannot_run(tmp_path):
    node = onnx.helper.make_node("Magic", ["x"], ["y"], domain="my.own")
    info = [onnx.helper.make_tensor_value_info(n, 1, [2]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", info[:1], info[1:])
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("my.own", 1)]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="Magic"):
        debug.verify("numeric", tmp_path / "m.onnx")
    debug.verify("structure", tmp_path / "m.onnx")


IF = """ifs (bool c, float[4] x) => (float[4] y) {
  n = Neg(x)
  y = If (c) <then_branch = t () => (float[4] p) { p = Neg(n) },
              else_branch = e () => (float[4] p) { p = Abs(n) }>
}"""


def test_branches_may_share_names_and_read_outer_values():
    check_structure(onnx_io.load(model(IF)))


def test_a_branch_may_not_hide_an_outer_name():
    graph = onnx_io.load(model(IF))
    inner = next(n for n in graph.walk() if n.op_type == "Abs")
    inner.outputs[0].name = "n"
    with pytest.raises(ModelError, match="two values are called 'n'"):
        check_structure(graph)


def test_a_branch_may_not_read_what_comes_later():
    graph = onnx_io.load(model(IF))
    neg = next(graph.nodes("Neg"))
    graph.main.remove(neg)
    graph.main.append(neg)
    with pytest.raises(ModelError, match="reads 'n' before it is written"):
        check_structure(graph)


def test_text_shows_bodies_types_and_no_control_characters():
    graph = onnx_io.load(model(IF))
    next(graph.nodes("Neg")).name = "evil\x1b[2J"
    text = graph_text(graph)
    assert "input c bool[]" in text and "output y float32[4]" in text
    assert "    p = Abs(n)" in text and "then_branch[0]:" in text
    assert "\x1b" not in text and "evil\\x1b[2J" in text
