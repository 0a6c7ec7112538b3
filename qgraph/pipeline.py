"""Passes, fusions and pipelines: the contract that every graph rewrite keeps."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic

from qgraph.collector import collector_paused
from qgraph.errors import QGraphError, UsageError, unknown_name
from qgraph.facts import FACTS
from qgraph.graph import Graph, Node, Value
from qgraph.pattern import Match, Pattern, match, possible, roots

if TYPE_CHECKING:
    from qgraph.context import Context


@dataclass(frozen=True)
class Refusal:
    """Something a pass looked at and left alone, with the reason."""

    where: str
    reason: str


@dataclass
class PassReport:
    """What one pass did.

    Attributes:
        changed: Number of rewrites; 0 means the graph is as before.
        details: One line a rewrite or finding, for `-v` and the manifest.
        refused: What it left alone, with reasons.
        warnings: Lines the user should see even without `-v`.
        notes: Lines that the manifest keeps: where results came from.
        layers: What was measured of each layer, for the manifest; JSON-able.
    """

    changed: int = 0
    details: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)

    def did(self, detail: str) -> None:
        """Count one rewrite."""
        self.changed += 1
        self.details.append(detail)

    def refuse(self, where: str, reason: str) -> None:
        """Note one thing left alone."""
        self.refused.append(Refusal(where, reason))


@dataclass(frozen=True)
class Pass:
    """A step of compilation. Subclasses are frozen dataclasses whose fields are their options.

    Attributes:
        name: Its name in recipes, reports and `--set name.option=value`.
        needs: Facts that must be on the graph before.
        gives: Facts it leaves on the graph.
        breaks: Facts that no longer hold afterwards.
        numerics: `exact` if outputs stay the same up to float rounding, else `rounding`.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    breaks: ClassVar[frozenset[str]] = frozenset()
    numerics: ClassVar[Literal["exact", "rounding"]] = "exact"

    def run(self, graph: Graph, context: "Context") -> PassReport:
        """Rewrite `graph` in place and report what changed and what was refused."""
        raise NotImplementedError

    @classmethod
    def with_options(cls, options: Mapping[str, Any]) -> "Pass":
        """Build the pass from options as a recipe gives them.

        Raises:
            UsageError: An option does not exist or has the wrong type.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for key in options:
            if key not in known:
                raise unknown_name(f"option of {cls.name}", key, known or {"(it has none)"})
        try:
            return pydantic.TypeAdapter(cls).validate_python(dict(options))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join([cls.name, *map(str, first["loc"])])
            raise UsageError(f"{place}: {first['msg']}, got {first['input']!r}") from error
        except (ValueError, QGraphError) as error:
            raise UsageError(f"{cls.name}: {error}") from error

    def options(self) -> dict[str, Any]:
        """Return the options, JSON-able."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Reject:
    """Returned by `Fusion.rewrite` where the pattern matched but must be left alone."""

    reason: str


@dataclass(frozen=True)
class Fusion(Pass):
    """A pattern and what to put in its place.

    Subclasses set `pattern` and write `rewrite`, which gets the match and returns the value that
    replaces the last node's first output, None where it rewrote in place, or a `Reject`. Nodes
    of the match that nobody reads afterwards are removed. `rewrite` must not change the graph
    before it is sure not to reject.

    Attributes:
        pattern: What to look for.
        largest_first: Look from the graph's end. For patterns with optional last nodes (a scale, a
            bias): there the whole must be found before its parts.
    """

    pattern: ClassVar[Pattern]
    largest_first: ClassVar[bool] = False

    def applies(self, graph: Graph, m: Match) -> bool:
        """Whether a match is a case for this fusion at all; if not, it is no refusal either.

        For what a pattern can't say, as attribute values.
        """
        return True

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Rewrite one match, or refuse it."""
        raise NotImplementedError

    def run(self, graph: Graph, context: "Context") -> PassReport:
        """Apply the fusion everywhere until it finds nothing new."""
        report = PassReport()
        ends = roots(self.pattern)
        again = True
        while again:
            again = False
            report.refused.clear()
            said: set[tuple[Node, str]] = set()
            # Reads of nodes added by a rewrite are seen in the next round at the latest.
            for node in self._candidates(graph, ends):
                if node.graph is None:
                    continue
                found = match(graph, self.pattern, node)
                if found is None or not self.applies(graph, found):
                    continue
                where = node.name or node.outputs[0].name or node.op_type
                outcome = self.rewrite(graph, found)
                if isinstance(outcome, Reject):
                    # A part of a match that was refused for the same reason is no news.
                    if (node, outcome.reason) not in said:
                        report.refuse(where, outcome.reason)
                    said.update((each, outcome.reason) for each in found.nodes)
                    continue
                if outcome is not None:
                    graph.replace(node.outputs[0], outcome)
                # More than one round where a node of the match is read twice in it.
                while graph.remove_unread(reversed(found.nodes)):
                    pass
                report.did(where)
                again = True
        if report.changed:
            graph.drop_unread_initializers()
        return report

    def _candidates(self, graph: Graph, ends: frozenset[str]) -> list[Node]:
        nodes = list(graph.walk())
        if not possible(self.pattern, {node.op_type for node in nodes}):
            return []
        found = [node for node in nodes if node.op_type in ends]
        return found[::-1] if self.largest_first else found


@dataclass(frozen=True)
class Stage:
    """What one pass did in a pipeline run."""

    name: str
    seconds: float
    report: PassReport
    options: dict[str, Any]
    numerics: str = "exact"


Hook = Callable[[Graph, Stage], None]


class Pipeline:
    """Passes in an order that was checked before anything runs.

    Args:
        passes: The passes, in order.
        hooks: Called after each pass, as for dumping, verifying and timing.
        given: Facts that are on the graph already.

    Raises:
        UsageError: A pass needs a fact that none before it gives, or that one before it broke.
    """

    def __init__(
        self, passes: Sequence[Pass], *, hooks: Iterable[Hook] = (), given: Iterable[str] = ()
    ) -> None:
        """Check the order."""
        self.passes = list(passes)
        self.hooks = list(hooks)
        self._given = set(given)
        self._check_order()

    def run(self, graph: Graph, context: "Context | None" = None) -> list[Stage]:
        """Run every pass on `graph`, in place.

        Returns:
            One stage a pass, with its time and report.
        """
        if context is None:
            from qgraph.context import Context

            context = Context()
        stages = []
        with collector_paused():
            for each in self.passes:
                stages.append(_run_one(each, graph, context))
                for hook in self.hooks:
                    hook(graph, stages[-1])
        return stages

    def _check_order(self) -> None:
        present = set(self._given)
        for index, each in enumerate(self.passes):
            unknown = (each.needs | each.gives | each.breaks) - FACTS
            if unknown:
                raise UsageError(
                    f"pass {each.name!r} names unknown facts: {', '.join(sorted(unknown))}"
                )
            for fact in sorted(each.needs - present):
                raise UsageError(
                    f"pass {each.name!r} needs {fact!r}", fix=self._advice(index, fact)
                )
            present = (present | each.gives) - each.breaks

    def _advice(self, index: int, fact: str) -> str:
        before = [p.name for p in self.passes[:index] if fact in p.gives]
        if before:
            breaker = [p.name for p in self.passes[:index] if fact in p.breaks][-1]
            return f"{breaker!r} breaks it: move {before[-1]!r} behind {breaker!r}"
        after = [p.name for p in self.passes[index + 1 :] if fact in p.gives]
        if after:
            return f"move {after[0]!r} in front of it"
        return "add a pass that gives it"


def _run_one(each: Pass, graph: Graph, context: "Context") -> Stage:
    missing = each.needs - graph.facts.present()
    if missing:
        raise UsageError(f"pass {each.name!r} needs {', '.join(sorted(missing))}")
    context.starting(each.name)
    start = time.perf_counter()
    report = each.run(graph, context)
    for fact in each.breaks:
        graph.facts.drop(fact)
    seconds = time.perf_counter() - start
    stage = Stage(each.name, seconds, report, each.options(), each.numerics)
    context.finished(stage)
    return stage
