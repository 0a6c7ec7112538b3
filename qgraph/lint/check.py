"""Runs the rules of a target's engines over a graph."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from qgraph import onnx_io
from qgraph.graph import Graph, Node
from qgraph.lint.device import device_rules
from qgraph.lint.rule import SEVERITIES, Finding, Rule, RuleSet
from qgraph.lint.view import View, op_name
from qgraph.passes.rewrites._qdq import label
from qgraph.recognise import quantized_ops
from qgraph.registry import load
from qgraph.target import Target


@dataclass(frozen=True)
class Unquantized:
    """A node of a float model that the planner would leave in float."""

    node: str
    op: str
    reason: str


@dataclass
class Linted:
    """What the linter found.

    Attributes:
        target: Name of the target.
        engines: Engines whose rules were checked.
        findings: Worst first, then in graph order.
        unquantized: For a float model, nodes that would stay in float, and why.
        notes: What could not be checked.
    """

    target: str
    engines: list[str]
    findings: list[Finding]
    unquantized: list[Unquantized] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """Whether the target would not take the model."""
        return any(each.severity == "refused" for each in self.findings)

    def counts(self) -> dict[str, int]:
        """Return the number of findings by severity."""
        found = Counter(each.severity for each in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    def fixes(self) -> set[str]:
        """Return the names of the rewrites that the findings ask for."""
        return {name for each in self.findings for name in each.fix}

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "target": self.target,
            "engines": self.engines,
            "counts": self.counts(),
            "refused": self.refused,
            "findings": [each.as_json() for each in self.findings],
            "not_quantized": [vars(each) for each in self.unquantized],
            "notes": self.notes,
        }


def lint(
    graph: Graph, target: Target, engines: Iterable[str] | None = None, *, parse: bool = True
) -> Linted:
    """Check a graph against the rules of a target's engines; nothing but shapes is added to it.

    Args:
        graph: The graph.
        target: The target.
        engines: Names of engines to check for; None for all of the target's.
        parse: Whether an engine's own parser is asked too, where it is installed.

    Returns:
        What was found. A node that one of several engines refuses falls back on the others.
    """
    chosen = list(target.engines if engines is None else engines)
    notes = []
    problem = onnx_io.infer_shapes(graph)
    if problem:
        notes.append(f"{problem}: rules about shapes and types find less")
    view = View(graph, target)
    sets = _sets(target, chosen)
    found: list[list[Finding]] = []
    for each in sets:
        note = each.prepare() if each.prepare is not None else None
        if note:
            notes.append(note)
        found.append(_findings(view, each, parse))
    known = {each.engine for each in sets}
    notes += [f"no rules are known for engine {name!r}" for name in chosen if name not in known]
    return Linted(target.name, chosen, _joined(found), _unquantized(graph, target), notes)


def _sets(target: Target, engines: list[str]) -> list[RuleSet]:
    from qgraph.lint import RULE_SETS

    if not engines:
        return [device_rules(target)]
    return [each for each in map(load, RULE_SETS) if each.engine in engines]


def _findings(view: View, rules: RuleSet, parse: bool) -> list[Finding]:
    found = []
    for rule in rules.rules:
        if rule.scan is not None:
            found += [_finding(rules, rule, "", w, detail) for w, detail in rule.scan(view)]
    checks = [rule for rule in rules.rules if rule.check is not None]
    for node in view.nodes():
        for rule in checks:
            if rule.ops and node.op_type not in rule.ops:
                continue
            assert rule.check is not None
            detail = rule.check(view, node)
            if detail is not None:
                found.append(_finding(rules, rule, op_name(node), label(node), detail))
                break  # the first that it breaks: what else is wrong follows mostly from it
    if parse and rules.parser is not None:
        said = rules.parser(view) or ()
        found += [each for each in said if not _known(each, found)]
    return found


def _known(said: Finding, found: list[Finding]) -> bool:
    """Whether a rule explains already what an engine's parser says, which need not name the node."""
    return any(
        each.severity == "refused"
        and (each.node == said.node or (not said.node and said.op in ("", each.op)))
        for each in found
    )


def _finding(rules: RuleSet, rule: Rule, op: str, where: str, detail: str) -> Finding:
    return Finding(
        node=where,
        op=op,
        engine=rules.engine,
        rule=rule.name,
        severity=rule.severity,
        what=rule.what,
        detail=detail,
        source=rule.source,
        fix=rule.fix,
        advice=rule.advice,
    )


def _joined(found: list[list[Finding]]) -> list[Finding]:
    """Join what several engines say: refused by all is refused, by some a fall back."""
    refusing = [any(each.severity == "refused" for each in findings) for findings in found]
    joined = [each for findings in found for each in findings]
    if not all(refusing):
        joined = [
            replace(each, severity="falls back") if each.severity == "refused" else each
            for each in joined
        ]
    return sorted(joined, key=lambda each: SEVERITIES.index(each.severity))


def _unquantized(graph: Graph, target: Target) -> list[Unquantized]:
    """Return what the planner would leave in float, looked up on a copy, since fusions rewrite."""
    if quantized_ops(graph) or "int8" not in target.precisions:
        return []
    from qgraph import inspection

    copy = Graph(graph.model.clone(), source=graph.source, sparse=graph.sparse)
    inspection.rewrites(copy)
    inspection.quantizable(copy, target)
    ops: dict[str, Node] = {node.name or "": node for node in copy.walk()}
    plan = copy.facts.plan
    return [
        Unquantized(name, op_name(ops[name]) if name in ops else "", reason)
        for name, (precision, reason) in (plan.nodes if plan else {}).items()
        if precision == "float"
    ]
