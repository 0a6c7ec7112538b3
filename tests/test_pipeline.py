from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from harness import check_fires, check_stays, model, ops

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import UsageError
from qgraph.facts import Plan
from qgraph.graph import Graph, Value
from qgraph.pattern import Match, Pattern, const, op, var
from qgraph.pipeline import Fusion, Pass, PassReport, Pipeline, Reject, Stage

TWICE = "g (float[2] x) => (float[2] z) { a = Neg(x) b = Neg(a) c = Neg(b) z = Neg(c) }"


@dataclass(frozen=True)
class GivesPlan(Pass):
    strength: float = 1.0
    kinds: tuple[str, ...] = ()
    name: ClassVar[str] = "gives_plan"
    gives: ClassVar[frozenset[str]] = frozenset({"plan"})

    def run(self, graph: Graph, context: Context) -> PassReport:
        graph.facts.plan = Plan()
        return PassReport()


@dataclass(frozen=True)
class NeedsPlan(Pass):
    name: ClassVar[str] = "needs_plan"
    needs: ClassVar[frozenset[str]] = frozenset({"plan"})
    breaks: ClassVar[frozenset[str]] = frozenset({"plan"})

    def run(self, graph: Graph, context: Context) -> PassReport:
        return PassReport()


@dataclass(frozen=True)
class NoDoubleNeg(Fusion):
    name: ClassVar[str] = "no_double_neg"
    pattern: ClassVar[Pattern] = op.Neg(op.Neg(var("x")))

    def rewrite(self, graph: Graph, m: Match) -> Value:
        return m.value("x")


@dataclass(frozen=True)
class OnlySmall(Fusion):
    name: ClassVar[str] = "only_small"
    pattern: ClassVar[Pattern] = op.Add(var("x"), const("c"))

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject:
        if np.abs(m.array("c")).max() > 1:
            return Reject("constant above 1")
        return m.value("x")


def test_a_wrong_order_is_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="'needs_plan' needs 'plan'; move 'gives_plan' in front"):
        Pipeline([NeedsPlan(), GivesPlan()])
    with pytest.raises(UsageError, match="add a pass that gives it"):
        Pipeline([NeedsPlan()])
    with pytest.raises(UsageError, match="'needs_plan' breaks it"):
        Pipeline([GivesPlan(), NeedsPlan(), NeedsPlan()])
    Pipeline([NeedsPlan()], given={"plan"})


def test_broken_facts_are_gone() -> None:
    graph = onnx_io.load(model(TWICE))
    Pipeline([GivesPlan(), NeedsPlan()]).run(graph)
    assert graph.facts.present() == set()


def test_a_fact_nobody_knows_is_refused() -> None:
    @dataclass(frozen=True)
    class Wrong(Pass):
        name: ClassVar[str] = "wrong"
        gives: ClassVar[frozenset[str]] = frozenset({"wisdom"})

    with pytest.raises(UsageError, match="wisdom"):
        Pipeline([Wrong()])


def test_hooks_see_every_stage() -> None:
    seen: list[str] = []

    def hook(graph: Graph, stage: Stage) -> None:
        seen.append(f"{stage.name} {stage.report.changed} {len(graph.main)}")

    Pipeline([NoDoubleNeg(), GivesPlan()], hooks=[hook]).run(onnx_io.load(model(TWICE)))
    assert seen == ["no_double_neg 2 1", "gives_plan 0 1"]


def test_options_are_checked_and_suggested() -> None:
    made = GivesPlan.with_options({"strength": 2, "kinds": ["a"]})
    assert made == GivesPlan(2.0, ("a",))
    assert made.options() == {"strength": 2.0, "kinds": ("a",)}
    with pytest.raises(UsageError, match="did you mean 'strength'"):
        GivesPlan.with_options({"strenght": 1})
    with pytest.raises(UsageError, match=r"gives_plan\.strength: .*'much'"):
        GivesPlan.with_options({"strength": "much"})
    with pytest.raises(UsageError, match="none"):
        NeedsPlan.with_options({"x": 1})


def test_a_fusion_runs_until_nothing_is_left() -> None:
    out = check_fires(NoDoubleNeg(), model(TWICE))
    assert ops(out) == ["Identity"]


def test_a_fusion_reaches_into_subgraphs() -> None:
    text = """g (float[2] x, bool k) => (float[2] y) {
        y = If(k) <then_branch = a () => (float[2] p) { m = Neg(x) n = Neg(m) p = Relu(n) },
                   else_branch = b () => (float[2] q) { q = Neg(x) }>
    }"""
    out = check_fires(NoDoubleNeg(), model(text), changed=1)
    assert [n.op_type for n in out.graph.node[0].attribute[0].g.node] == ["Relu"]


def test_a_refusal_is_reported_once_and_changes_nothing() -> None:
    proto = model("g (float[2] x) => (float[2] z) { z = Add(x, c) }", {"c": np.float32([5, 0])})
    (report,) = check_stays(OnlySmall(), proto, "constant above 1")
    assert len(report.refused) == 1


def test_the_harness_catches_a_fusion_that_changes_numbers() -> None:
    proto = model("g (float[2] x) => (float[2] z) { z = Add(x, c) }", {"c": np.float32([0.5, 0])})
    with pytest.raises(AssertionError, match="error"):
        check_fires(OnlySmall(), proto)
