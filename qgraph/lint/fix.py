"""Applies the rewrites that findings name, until none of them finds anything to do."""

from dataclasses import dataclass, field
from typing import Any

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.lint.check import Linted, lint
from qgraph.pipeline import Pipeline
from qgraph.target import Target

# A rewrite can uncover what another one repairs, as a bias behind a QLinearConv.
_ROUNDS = 4
_BLOCKED_SINCE = 21


@dataclass(frozen=True)
class Applied:
    """What one rewrite did.

    Attributes:
        name: Its pass name.
        changed: Number of rewrites.
        numerics: `exact`, or `rounding` where values move.
        details: One line a rewrite, with the bound by which values move.
        refused: What it left alone: (where, reason).
    """

    name: str
    changed: int
    numerics: str
    details: list[str]
    refused: list[tuple[str, str]]


@dataclass
class Fixed:
    """What `fix` did.

    Attributes:
        before: Findings on the model as it came.
        after: Findings on the model as it is now.
        applied: Every rewrite that ran, in order.
        notes: What else was done.
    """

    before: Linted
    after: Linted
    applied: list[Applied] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> int:
        """Number of rewrites in all."""
        return sum(each.changed for each in self.applied)

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        applied = [
            {**vars(each), "refused": [{"where": w, "reason": r} for w, r in each.refused]}
            for each in self.applied
        ]
        return {"changed": self.changed, "applied": applied, "after": self.after.as_json()}


def fix(graph: Graph, target: Target, engines: list[str] | None = None) -> Fixed:
    """Rewrite a graph, in place, so that a target takes more of it.

    Only the rewrites that findings name run, each on the whole graph, in the order of
    `qgraph.passes.rewrites.REWRITES`.

    Returns:
        What was done, and what is left.
    """
    from qgraph.passes import pass_class
    from qgraph.passes.rewrites import REWRITES
    from qgraph.registry import by_name

    before = lint(graph, target, engines)
    done = Fixed(before, before)
    for _ in range(_ROUNDS):
        wanted = [name for name in by_name(REWRITES) if name in done.after.fixes()]
        if "unpack_matmul_nbits" in wanted:
            _upgrade(graph, done)
        stages = Pipeline([pass_class(name).with_options({}) for name in wanted]).run(
            graph, Context(target=target)
        )
        changed = 0
        for stage in stages:
            report = stage.report
            changed += report.changed
            if report.changed or report.refused:
                refused = [(each.where, each.reason) for each in report.refused]
                done.applied.append(
                    Applied(stage.name, report.changed, stage.numerics, report.details, refused)
                )
        if not changed:
            break
        done.after = lint(graph, target, engines, parse=False)
    if done.changed:
        done.after = lint(graph, target, engines)
    return done


def _upgrade(graph: Graph, done: Fixed) -> None:
    """Bring the model to the opset in which DequantizeLinear got blocks."""
    before = graph.opset
    if before >= _BLOCKED_SINCE:
        return
    problem = onnx_io.upgrade_opset(graph, _BLOCKED_SINCE)
    graph.model.ir_version = max(graph.model.ir_version or 0, 10)
    done.notes.append(problem or f"opset {before} became {_BLOCKED_SINCE}")
