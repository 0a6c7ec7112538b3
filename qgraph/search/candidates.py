"""Whole models in the target's other precisions, which stand beside mixes of float and int8.

Weights in few bits take long to solve for on data. What a model with them takes and how large it is
does not depend on their values: so it is rounded to nearest first, as a draft, and solved for only
where it would be the best so far.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from glob import escape
from math import inf
from pathlib import Path
from typing import Any

from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.errors import QGraphError
from qgraph.graph import Graph
from qgraph.job import Job
from qgraph.passes.weights import WEIGHT_QUANTIZERS
from qgraph.pipeline import Pipeline, Stage
from qgraph.recipe import with_settings
from qgraph.runtime.backend import EngineOptions
from qgraph.search.choice import Choice
from qgraph.search.goal import Goal
from qgraph.search.prepared import Prepared, clone
from qgraph.search.whole import Timed, Whole
from qgraph.target import WEIGHT_ONLY

# Beside fp32 and the mixes of int8.
PRECISIONS = ("fp16", "bf16", "fp8", "int8-dynamic", "w8a16", "int8-weights", "int4")
# Passes that put something of the model into codes.
_DECIDING = ("dynamic_int8", "weight_only", "insert_qdq", "fp8")
_FAILURES = (QGraphError, ValueError, ArithmeticError, RuntimeError, LookupError)
# A draft that seems slower than the best by more than noise is not solved for.
_NOISE = 1.05


@dataclass(eq=False)
class Candidates:
    """The other whole models of a search, each built once.

    Attributes:
        prepared: The calibrated model.
        job: Target and recipe.
        folder: Where models lie.
        floats: Names of nodes that must stay in float.
        only_float: Whether some nodes must be in int8, which no candidate in integers ensures.
        built: By precision, the graph of a finished model and what the passes did.
        notes: By precision, why there is no such model.
    """

    prepared: Prepared
    job: Job
    folder: Path
    floats: Collection[str] = ()
    only_float: bool = False
    built: dict[str, tuple[Graph, list[Stage]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    _models: dict[str, Whole] = field(default_factory=dict)

    def all(self) -> list[Whole]:
        """Return all that can be built, those with weights in few bits as drafts if not finished."""
        found = []
        for precision in self._precisions():
            if precision not in self._models and precision not in self.notes:
                self._build(precision, draft=precision in WEIGHT_ONLY)
            if precision in self._models:
                found.append(self._models[precision])
        return found

    def finished(self) -> list[Whole]:
        """Return those that are no drafts."""
        return [whole for whole in self.all() if not whole.draft]

    def finish(self, whole: Whole) -> None:
        """Put a model with solved weights in the place of a draft, or a note that there is none."""
        if whole.draft:
            del self._models[whole.precision]
            self._build(whole.precision, draft=False)

    def _precisions(self) -> list[str]:
        target = self.job.target
        found = [p for p in PRECISIONS if p in target.precisions and p not in target.instead]
        return [p for p in found if not self.only_float or p in ("fp16", "bf16")]

    def _build(self, precision: str, *, draft: bool) -> None:
        try:
            whole = self._built(precision, draft)
        except _FAILURES as error:  # a candidate is an offer: its failure ends no search
            line = str(error) or type(error).__name__
            self.notes[precision] = line
            self.job.listener.info(f"{precision}: {line}")
            return
        if whole is None:
            self.notes[precision] = "nothing of the model can be in it"
        else:
            self._models[precision] = whole

    def _built(self, precision: str, draft: bool) -> Whole | None:
        graph, context = clone(self.prepared.graph), self._context(precision, draft)
        options = self._options(precision, draft)
        passes = flow.quantizing_passes(precision, options, self.job.target)
        stages = Pipeline(passes).run(graph, context)
        deciding = ("half",) if precision in ("fp16", "bf16") else _DECIDING
        if not any(stage.report.changed for stage in stages if stage.name in deciding):
            return None
        kernels = flow.kernel_passes(precision, options, self.job.target)
        judged = self.folder / f"{precision}.judged.onnx" if kernels else None
        if judged is not None:
            onnx_io.save(graph, judged)
        stages += Pipeline(kernels, given=graph.facts.present()).run(graph, context)
        path = self.folder / f"{precision}{'.draft' if draft else ''}.onnx"
        onnx_io.save(graph, path)
        if not draft:
            before = [stage for stage in self.prepared.stages if stage.name != "plan"]
            self.built[precision] = (graph, [*before, *stages])
        # Engines that compute in bfloat16 do so when told to, whatever type weights are stored in.
        way = EngineOptions(float_precision="bf16" if precision == "bf16" else "f32")
        return Whole(precision, precision, path, way, draft=draft, judged=judged)

    def _context(self, precision: str, draft: bool) -> Context:
        exclude = self.prepared.context.exclude
        if precision not in ("fp16", "bf16"):
            exclude = (*exclude, *map(escape, sorted(self.floats)))
        context = replace(self.prepared.context, exclude=exclude)
        return replace(context, data=None) if draft else context

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
