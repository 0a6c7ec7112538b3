"""Writes a mix: integers first, then weights in few bits and float8, and half precision around them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from typing import Any

from qgraph import flow
from qgraph.context import Context
from qgraph.facts import Plan
from qgraph.graph import Graph, Node, Value
from qgraph.job import Job
from qgraph.pipeline import Pass, Pipeline, Stage
from qgraph.search.float8_pairs import write_pairs
from qgraph.search.offered import Offered
from qgraph.search.prepared import Prepared, clone
from qgraph.search.units import Unit
from qgraph.search.ways import CODES, DYNAMIC, FLOAT, FLOAT8, WIDE, Way


@dataclass(frozen=True, eq=False)
class Written:
    """A mix.

    Attributes:
        graph: The model.
        stages: What passes did.
        judged: The same in operators that the reference has, where the model has others.
    """

    graph: Graph
    stages: list[Stage]
    judged: Graph | None = None


def write(
    prepared: Prepared,
    job: Job,
    units: Sequence[Unit],
    ways: Mapping[str, Way],
    offered: Offered,
) -> Written:
    """Write the model with each unit in its way.

    Args:
        prepared: The calibrated model.
        job: Target and recipe.
        units: Its units.
        ways: By name of the unit, its way.
        offered: What ways there are.

    Raises:
        QGraphError: A pass refuses the model.
    """
    writer = _Writer(prepared, job, units, ways, offered)
    writer.integers()
    writer.weights()
    writer.dynamic()
    writer.float8()
    writer.half()
    return writer.finished()


class _Writer:
    def __init__(
        self,
        prepared: Prepared,
        job: Job,
        units: Sequence[Unit],
        ways: Mapping[str, Way],
        offered: Offered,
    ) -> None:
        self.prepared, self.job, self.units = prepared, job, units
        self.ways, self.offered = ways, offered
        self.graph, self.stages = prepared.graph, prepared.stages
        self.options = {name: dict(values) for name, values in job.recipe.passes.items()}

    def integers(self) -> None:
        names = self._names(lambda way: way.unit not in (CODES, WIDE))
        wide = self._names(lambda way: way.unit == WIDE)
        if len(names) < len(self.ways):
            self.graph, self.stages = self.prepared.mixed(names, wide, self.offered.wide)
            return
        self.graph = clone(self.prepared.graph)
        self.stages = [stage for stage in self.prepared.stages if stage.name != "plan"]

    def weights(self) -> None:
        chosen = {name: way.weight for name, way in self.ways.items() if way.weight is not None}
        if not chosen:
            return
        lines = [f"{escape(n)}={bits}:{group}" for n, (bits, group) in chosen.items()]
        # Scales would move between layers, whose inputs may be codes.
        fixed: dict[str, Any] = {"layers": ("*=float", *lines), "scaling": False, "skip_worse": 0}
        fixed |= {"batch": None, "head": True, "embeddings": False}
        only = {"convolutions": False, "only": tuple(chosen)}
        self._run(("linear_to_matmul", "weight_only", "drop_dead"),
                  linear_to_matmul=only, weight_only=fixed)  # fmt: skip

    def dynamic(self) -> None:
        chosen = self._names(lambda way: way.unit == DYNAMIC)
        if not chosen:
            return
        others = [node.name or "" for node in self.graph.nodes() if node.name not in chosen]
        exclude = (*self.prepared.context.exclude, *map(escape, others))
        passes = flow.build(("dynamic_int8", "drop_dead"), self.options)
        self._apply(passes, exclude)

    def float8(self) -> None:
        chosen = self._names(lambda way: way.unit == FLOAT8)
        if not chosen:
            return
        if self.offered.pairs:
            self._pairs(chosen)
            return
        others = (name for name in self.ways if name not in chosen)
        fixed = {"leave": tuple(map(escape, others)), "costs": False, "head": True}
        only = {"convolutions": False, "only": tuple(chosen)}
        self._run(("linear_to_matmul", "fp8", "drop_dead"), linear_to_matmul=only, fp8=fixed)

    def _pairs(self, chosen: Sequence[str]) -> None:
        plan: Plan = self.graph.facts.plan or Plan()
        made: dict[Value, Value] = {}
        for node in list(self.graph.nodes()):
            name = node.name or ""
            if name in chosen:
                write_pairs(self.graph, node, self.offered.pairs[name], made)
                plan.nodes[name] = ("fp8", "Q/DQ in float8")
        self.graph.facts.plan = plan

    def half(self) -> None:
        kind = self.offered.half
        if not any(way.rest == kind for way in self.ways.values()):
            return
        rests = self._rests()
        floats = [n for n in self.graph.nodes() if self._rest(n, rests) != kind]
        exclude = (*self.prepared.context.exclude, *(escape(n.name or "") for n in floats))
        lowering = flow.lowering_passes(kind, self.options, self.job.target)
        own = self.options.get("half", {}) | flow.IMPLIED[kind]["half"] | {"trusted": True}
        half = flow.build(("half",), {"half": own})
        self._apply([*lowering, *half], exclude)

    def finished(self) -> Written:
        kernels: list[Pass] = []
        if any(way.unit == FLOAT8 for way in self.ways.values()):
            kernels = flow.kernel_passes(FLOAT8, self.options, self.job.target)
        judged = clone(self.graph) if kernels else None
        self._apply(kernels, self.prepared.context.exclude)
        return Written(self.graph, self.stages, judged)

    # -- steps -------------------------------------------------------------------------------------

    def _names(self, wanted: Any) -> list[str]:
        return [name for name, way in self.ways.items() if wanted(way)]

    def _run(self, names: Iterable[str], **options: Mapping[str, Any]) -> None:
        """Run passes by name, with these options on top of the recipe's."""
        merged = {**self.options}
        for name, values in options.items():
            merged[name] = merged.get(name, {}) | dict(values)
        self._apply(flow.build(tuple(names), merged), self.prepared.context.exclude)

    def _apply(self, passes: Sequence[Pass], exclude: Sequence[str]) -> None:
        if not passes:
            return
        before = self.graph.facts.plan
        context: Context = replace(self.prepared.context, exclude=tuple(exclude))
        given = self.graph.facts.present()
        self.stages = [*self.stages, *Pipeline(list(passes), given=given).run(self.graph, context)]
        after = self.graph.facts.plan
        if before is not None and after is not None and after is not before:
            self.graph.facts.plan = _merged(before, after)

    def _rests(self) -> dict[str, str]:
        """By name of a result of the float model, the type of its segment; empty where it has none."""
        found: dict[str, str] = {}
        for unit in self.units:
            rest = self.ways[unit.name].rest
            for node in (*unit.nodes, *unit.tail):
                for out in node.outputs:
                    fits = rest == FLOAT or out.name in self.offered.halves
                    found[out.name or ""] = rest if fits or unit.node is node else FLOAT
        return found

    def _rest(self, node: Node, rests: Mapping[str, str]) -> str:
        """The type that a node is to compute in: a new one goes by whoever reads its result."""
        seen: set[Node] = set()
        current: Node | None = node
        while current is not None and current not in seen:
            seen.add(current)
            known = [rests[out.name or ""] for out in current.outputs if out.name in rests]
            if known:
                return known[0]
            uses = (use.node for out in current.outputs for use in out.uses())
            current = next(iter(uses), None)
        return FLOAT


def _merged(before: Plan, after: Plan) -> Plan:
    """What both plans say: a later pass does not know what an earlier one put into codes."""
    kept = {name: entry for name, entry in before.nodes.items() if entry[0] != "float"}
    return replace(before, nodes={**before.nodes, **after.nodes, **kept})
