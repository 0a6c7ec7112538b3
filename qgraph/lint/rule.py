"""What a rule is, and what it finds."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from qgraph.graph import Node
from qgraph.lint.view import View

Severity = Literal["refused", "falls back", "not fused", "slow"]
# Worst first.
SEVERITIES: tuple[Severity, ...] = ("refused", "falls back", "not fused", "slow")


@dataclass(frozen=True)
class Rule:
    """One thing that an engine does not do, or does not do well.

    Attributes:
        name: Short name, unique in its engine.
        severity: `refused`: the engine does not take the model. `falls back`: the node runs, in
            another precision or elsewhere. `not fused`: its Q/DQ stay, and it runs in float between
            them. `slow`: it runs in integers, slower than it could.
        what: The rule, as a clause about the node.
        source: Where it comes from.
        check: Says what about a node breaks the rule ("" where `what` says it all), or None.
        scan: In place of `check`, for what is no node: pairs of a name and what breaks the rule.
        ops: Operators that it is about; empty for all.
        fix: Rewrites that repair it, by pass name; all run with `--fix`.
        advice: What to do where no rewrite is safe.
    """

    name: str
    severity: Severity
    what: str
    source: str
    check: Callable[[View, Node], str | None] | None = None
    scan: Callable[[View], Iterable[tuple[str, str]]] | None = None
    ops: frozenset[str] = frozenset()
    fix: tuple[str, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class RuleSet:
    """The rules of one engine.

    Attributes:
        engine: Name of the backend.
        rules: Its rules.
        prepare: Called once before a model is looked at, to say why some rules can't be checked.
        parser: Called last, to ask the engine's own parser; None where it is not installed. See
            `qgraph.lint.parser`.
    """

    engine: str
    rules: tuple[Rule, ...]
    prepare: Callable[[], str | None] | None = None
    parser: Callable[[View], "Iterable[Finding] | None"] | None = None


@dataclass(frozen=True)
class Finding:
    """One node that breaks one rule.

    Attributes:
        node: Its name, or that of its first output; of a graph input or output, that name.
        op: Its operator, with its domain where that is not ONNX's; "" for no node.
        engine: Engine whose rule it is.
        rule: The rule's name.
        severity: What it means for the target: what one of several engines refuses is a fall back
            to the others.
        what: The rule.
        detail: What about the node breaks it.
        source: Where the rule comes from.
        fix: Rewrites that repair it.
        advice: What to do where no rewrite is safe.
    """

    node: str
    op: str
    engine: str
    rule: str
    severity: Severity
    what: str
    detail: str
    source: str
    fix: tuple[str, ...] = ()
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Table:
    """Reasons by operator, as data: the check of a rule about operators that do not exist.

    Attributes:
        reasons: By operator, what is missing.
    """

    reasons: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, view: View, node: Node) -> str | None:
        """Return the reason for the node's operator."""
        return self.reasons.get(node.op_type) if view.graph.is_standard(node) else None
