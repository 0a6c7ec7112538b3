"""Times of a device that is not here: the roofline over a model's kernels, and measured units.

Shapes come from one run of each model on the reference, which also scores them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from qgraph import onnx_io
from qgraph.cache import Cache
from qgraph.errors import EngineError, QGraphError
from qgraph.graph import Graph
from qgraph.runtime.backend import Session
from qgraph.runtime.choose import Candidate
from qgraph.runtime.choose import Measured as Line
from qgraph.runtime.reference import open_reference
from qgraph.search.costs import Costs, Engine, cost_units
from qgraph.search.costs_file import CostsFile
from qgraph.search.devices import Device
from qgraph.search.emulate import emulate
from qgraph.search.observed import Seen, observe
from qgraph.search.roofline import total_ms
from qgraph.search.unit_parts import Part, UnitParts, coded_part, plain_part
from qgraph.search.units import Unit
from qgraph.search.ways import CODES, FLOAT, Way, way
from qgraph.search.whole import Round, Timed, Whole
from qgraph.search.work import names_to_observe, with_codes, works

# Corrections by measured units leave this share of an estimate at least.
_LEAST = 0.05


@dataclass(frozen=True, eq=False)
class Known:
    """The units of the search, for what was measured of them.

    Attributes:
        graph: The float graph.
        units: Its units.
        seen: What its values look like.
    """

    graph: Graph
    units: Sequence[Unit]
    seen: Mapping[str, Seen]


class Estimated:
    """Estimates for a device, in the best of some backends.

    Attributes:
        estimated: How times are estimated.
        from_file: Keys of parts that were taken from the file.
    """

    def __init__(
        self,
        device: Device,
        backends: Sequence[str],
        absent: str,
        given: CostsFile | None,
        warn: Callable[[str], None],
    ) -> None:
        """Keep what estimates are made from.

        Args:
            device: The device.
            backends: Those of its backends that the target runs in.
            absent: Why nothing is measured.
            given: Measured times of units.
            warn: Told what the user should know.
        """
        self.device, self.backends, self.absent, self.warn = device, tuple(backends), absent, warn
        self.given = {} if given is None else given.by_key()
        self.given_backend = "" if given is None else given.backend
        units = f", units as measured on {given.processor}" if given is not None else ""
        self.estimated = f"estimated for {device.name}{units}; {absent}"
        self.from_file: set[str] = set()
        self.known: Known | None = None
        self._parts: dict[tuple[str, str], float | None] = {}
        self._told = False

    def open(self, whole: Whole, engine: Engine) -> Session:
        """Open a model on the reference, in operators that it has; half precision is emulated."""
        path = whole.judged or whole.model
        emulated = path.with_suffix(".emulated.onnx")
        if not emulated.exists():
            graph = onnx_io.load(path)
            if not emulate(graph):
                return open_reference(path)
            onnx_io.save(graph, emulated)
        return open_reference(emulated)

    def memory(self, found: Round, feeds: Mapping[str, Any]) -> Round:
        """Refuse: memory is measured or unknown.

        Raises:
            EngineError: Always.
        """
        raise EngineError(f"memory can't be measured: {self.absent}", fix="pass --optimize size")

    def whole(
        self,
        models: Sequence[Whole],
        feeds: Mapping[str, Any],
        budget_s: float | None = None,
        engine: Engine | None = None,
    ) -> Round:
        """Estimate models in each backend; arguments are those of `time_whole`.

        Raises:
            EngineError: The float model can't be estimated.
        """
        known = self._known(models, feeds) if self.given else None
        found: list[tuple[float, str, Whole]] = []
        failed: list[Line] = []
        factors: dict[str, float] = {}
        for model in sorted(models, key=lambda model: model.name != "fp32"):
            for name in [engine.backend] if engine is not None else self.backends:
                try:
                    ms = self._whole(model, name, feeds, known, factors)
                except (QGraphError, LookupError) as error:
                    label = f"{name} {model.name}"
                    reason = f"can't be estimated: {error.args[0]}"
                    failed.append(Line(Candidate(name, model.model, label=label), None, reason))
                else:
                    found.append((ms, name, model))
        found.sort(key=lambda each: each[0])
        timed: dict[str, Timed] = {}
        for ms, name, model in found:
            if model.name not in timed:
                size, relative = model.model.stat().st_size, ms / found[0][0]
                timed[model.name] = Timed(
                    model, Engine(name, model.options), ms, ms, relative, size
                )
        if "fp32" not in timed and any(model.name == "fp32" for model in models):
            reasons = "; ".join(f"{each.candidate}: {each.reason}" for each in failed)
            raise EngineError(f"the float model can't be estimated ({reasons})")
        if self.given and not self.from_file and not self._told and self.known is not None:
            self._told = True
            self.warn("--costs has no unit of this model: all of its times are estimated")
        return Round(tuple(timed.values()), tuple(failed), self.estimated)

    def units(
        self,
        parts: UnitParts,
        ways: Sequence[Sequence[Way]],
        engine: Engine,
        *,
        store: Cache | None,
        progress: Callable[[int, int], None],
    ) -> Costs:
        """Estimate units, but those that were measured; arguments are those of `time_units`."""
        return cost_units(parts, ways, lambda part: self._part(part, engine.backend), progress)

    def _whole(
        self,
        model: Whole,
        name: str,
        feeds: Mapping[str, Any],
        known: Known | None,
        factors: dict[str, float],
    ) -> float:
        """Milliseconds of a model; `factors` are those by which measured units moved the float one."""
        if model.options.float_precision != "f32":
            raise LookupError("a type that the engine chooses")
        path = model.judged or model.model
        graph = onnx_io.load(path)
        ms = self._graph(graph, path, feeds, name)
        if known is None or name != self.given_backend:
            return ms
        if model.name != "fp32" and model.ways is None:
            return ms * factors.get(name, 1.0)
        moved = max(_LEAST * ms, ms + self._moved(known, graph, dict(model.ways or ()), name))
        if model.name == "fp32":
            factors[name] = moved / ms
        return moved

    def _moved(self, known: Known, graph: Graph, ways: Mapping[str, str], name: str) -> float:
        """What measured units take beyond their estimates, in float and in integers."""
        nodes = {node.name: node for node in graph.nodes()}
        total = 0.0
        for unit in known.units:
            kind = way(ways.get(unit.name, FLOAT)).unit
            if kind == FLOAT:
                part = plain_part(known.graph, unit, known.seen)
            elif kind == CODES:
                part = coded_part(graph, nodes[unit.node.name], unit, known.seen)
            else:
                continue
            if part.key in self.given:
                self.from_file.add(part.key)
                total += self.given[part.key] - (self._roof(part, name) or 0.0)
        return total

    def _part(self, part: Part, name: str) -> float | None:
        """Milliseconds of a part: measured, or estimated; None where the backend lacks it."""
        if name == self.given_backend and part.key in self.given:
            self.from_file.add(part.key)
            return self.given[part.key]
        return self._roof(part, name)

    def _roof(self, part: Part, name: str) -> float | None:
        if (name, part.key) not in self._parts:
            self._parts[name, part.key] = None
            with TemporaryDirectory(prefix="qgraph-") as folder:
                path = Path(folder) / "unit.onnx"
                onnx_io.save(part.graph, path)
                try:
                    self._parts[name, part.key] = self._graph(part.graph, path, part.feeds, name)
                except (QGraphError, LookupError):
                    pass
        return self._parts[name, part.key]

    def _graph(self, graph: Graph, path: Path, feeds: Mapping[str, Any], name: str) -> float:
        feeds = {key: np.asarray(value) for key, value in feeds.items()}
        seen = with_codes(graph, observe(path, list(names_to_observe(graph)), feeds))
        rates = self.device.backends[name]
        return total_ms(self.device, name, works(graph, seen, rates.fused, rates.codes))

    def _known(self, models: Sequence[Whole], feeds: Mapping[str, Any]) -> Known | None:
        """The search's units with the shapes of their values, once there are some."""
        if self.known is not None and not self.known.seen:
            path = next((model.model for model in models if model.name == "fp32"), None)
            if path is None:
                return None
            names = [v.name or "" for node in self.known.graph.nodes() for v in node.outputs]
            self.known = replace(self.known, seen=observe(path, names, feeds))
        return self.known
