"""Whole models in the target's other precisions, which stand beside mixes of float and int8.

Weights in few bits take long to solve for on data. What a model with them takes and how large it is
does not depend on their values: so it is rounded to nearest first, as a draft, and solved for only
where it would be the best so far.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from math import inf
from pathlib import Path
from typing import Any

from qgraph import onnx_io
from qgraph.graph import Graph
from qgraph.job import Job
from qgraph.passes.weights import WEIGHT_QUANTIZERS
from qgraph.pipeline import Stage
from qgraph.recipe import with_settings
from qgraph.runtime.backend import EngineOptions
from qgraph.search.building import FLOAT, NOTHING, Built, Order, build, build_shared, unpack
from qgraph.search.choice import Choice
from qgraph.search.goal import Goal
from qgraph.search.prepared import Prepared, clone
from qgraph.search.whole import Timed, Whole
from qgraph.target import WEIGHT_ONLY
from qgraph.tasks import Executor, SharedFolder, Task

# Beside fp32 and the mixes of int8.
PRECISIONS = ("fp16", "bf16", "fp8", "int8-dynamic", "w8a16", "int8-weights", "int4")
# A draft that seems slower than the best by more than noise is not solved for.
_NOISE = 1.05


@dataclass(eq=False)
class Candidates:
    """The other whole models of a search, each built once.

    Attributes:
        prepared: The calibrated model.
        job: Target and recipe.
        folder: Where models lie.
        executor: Builds several at a time; None builds one after the other here.
        floats: Names of nodes that must stay in float.
        only_float: Whether some nodes must be in other precisions than the rest, which no candidate but
            a float one may stand in for.
        needed: Precisions that are built all the same, because mixes have something from them.
        built: By precision, the graph of a finished model and what the passes did.
        notes: By precision, why there is no such model.
    """

    prepared: Prepared
    job: Job
    folder: Path
    executor: Executor | None = None
    floats: Collection[str] = ()
    only_float: bool = False
    needed: Collection[str] = ()
    built: dict[str, tuple[Graph, list[Stage]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    _models: dict[str, Whole] = field(default_factory=dict)
    _shared: SharedFolder | None = None

    def all(self) -> list[Whole]:
        """Return all that can be built, those with weights in few bits as drafts if not finished."""
        wanted = self._precisions()
        new = [p for p in wanted if p not in self._models and p not in self.notes]
        self._build([self._order(p, draft=p in WEIGHT_ONLY) for p in new])
        return [self._models[p] for p in wanted if p in self._models]

    def finished(self) -> list[Whole]:
        """Return those that are no drafts."""
        may = (each for each in self.all() if each.is_float or not self.only_float)
        return [whole for whole in may if not whole.draft]

    def finish(self, drafts: Sequence[Whole]) -> None:
        """Put models with solved weights in the place of drafts, or notes that there are none."""
        drafts = [whole for whole in drafts if whole.draft]
        for whole in drafts:
            del self._models[whole.precision]
        self._build([self._order(whole.precision, draft=False) for whole in drafts])

    def _precisions(self) -> list[str]:
        target = self.job.target
        found = [p for p in PRECISIONS if p in target.precisions and p not in target.instead]
        floats = ("fp16", "bf16", *self.needed)
        return [p for p in found if not self.only_float or p in floats]

    def _order(self, precision: str, *, draft: bool) -> Order:
        exclude = (*self.prepared.context.exclude, *map(escape, sorted(self.floats)))
        return Order(precision, draft, self._options(precision, draft), exclude)

    def _build(self, orders: Sequence[Order]) -> None:
        """Build what was ordered: in tasks where there are workers, a single one here."""
        # One alone would have a worker's share of the cores and no company.
        apart = self.executor is not None and len(orders) > 1
        made = self._by_tasks(orders) if apart else map(self._here, orders)
        for order, built in zip(orders, made, strict=True):
            self._take(order, built)

    def _here(self, order: Order) -> Built:
        context = replace(self.prepared.context, exclude=order.exclude)
        context = replace(context, data=None) if order.draft else context
        return build(clone(self.prepared.graph), context, self.job.target, order, self.folder)

    def _by_tasks(self, orders: Sequence[Order]) -> Iterator[Built]:
        assert self.executor is not None
        if self._shared is None:
            shared = self.folder / "float"
            shared.mkdir()
            onnx_io.save(clone(self.prepared.graph), shared / FLOAT)
            self._shared = self.executor.share(shared)
        context, feeds = self.prepared.context, None
        if not all(order.draft for order in orders) and context.data is not None:
            feeds = list(context.data)
        tasks = [
            Task.of(
                f"building {order.precision}",
                build_shared,
                folder=self._shared,
                order=order,
                target=self.job.target.name,
                recipe=self.job.recipe,
                feeds=None if order.draft else feeds,
                seed=context.seed,
            )
            for order in orders
        ]
        parcels = self.executor.stream(tasks)
        for order, parcel in zip(orders, parcels, strict=True):
            yield unpack(parcel, order, self.folder, self.job.listener.info)

    def _take(self, order: Order, built: Built) -> None:
        precision = order.precision
        if built.graph is None:
            self.notes[precision] = built.note
            if built.note != NOTHING:
                self.job.listener.info(f"{precision}: {built.note}")
            return
        if not order.draft:
            before = [stage for stage in self.prepared.stages if stage.name != "plan"]
            self.built[precision] = (built.graph, [*before, *built.stages])
        # Engines that compute in bfloat16 do so when told to, whatever type weights are stored in.
        way = EngineOptions(float_precision="bf16" if precision == "bf16" else "f32")
        judged = self.folder / order.judged if built.judged else None
        self._models[precision] = Whole(
            precision, precision, self.folder / order.model, way, draft=order.draft, judged=judged
        )

    def _options(self, precision: str, draft: bool) -> Mapping[str, Mapping[str, Any]]:
        """The recipe's options; what suits the target at this precision stands behind them."""
        own = list(self.job.target.settings.get(precision, ()))
        suited = with_settings(self.job.recipe.model_copy(update={"passes": {}}), own).passes
        options = self.prepared.options
        merged = {name: suited.get(name, {}) | options.get(name, {}) for name in suited | options}
        weights = merged.get("weight_only", {})
        if draft and weights.get("method", "gptq") in WEIGHT_QUANTIZERS:
            plain = {"method": "rtn", "scaling": False, "clip": "none"}
            merged["weight_only"] = weights | plain
        return merged


def may_win(draft: Timed, goal: Goal, base: Timed, best: Choice | None) -> bool:
    """Whether a draft would be the best so far, were its weights solved for.

    Args:
        draft: The draft, timed.
        goal: What is asked for.
        base: The float model, timed in the same round.
        best: The best mix that keeps the promise, as it was predicted; None where none does.
    """
    if goal.max_bytes is not None and draft.bytes > goal.max_bytes:
        return False
    if goal.max_ms is not None and draft.p50_ms > _NOISE * goal.max_ms:
        return False
    fits = not (
        (goal.max_bytes is not None and base.bytes > goal.max_bytes)
        or (goal.max_ms is not None and base.p50_ms > goal.max_ms)
    )
    if goal.max_drop is None:
        return not fits
    if goal.optimize == "latency":
        known = min(base.p50_ms if fits else inf, inf if best is None else best.time)
        return draft.p50_ms < _NOISE * known
    # What is small on disk is small in memory, too, unless the engine unpacks it.
    size = min(base.bytes if fits else inf, inf if best is None else best.bytes)
    return draft.bytes < size
