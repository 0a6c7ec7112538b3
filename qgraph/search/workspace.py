"""What a search works on: the calibrated model, its parts on disk, its data, and who judges."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qgraph import onnx_io
from qgraph.cache import Cache
from qgraph.data import Feeds
from qgraph.facts import Plan
from qgraph.job import Job
from qgraph.metrics.metric import Metric
from qgraph.search.candidates import Candidates
from qgraph.search.choice import Choice
from qgraph.search.costs import Engine
from qgraph.search.goal import Goal
from qgraph.search.judge import Judge, Verdict
from qgraph.search.parts import Parts
from qgraph.search.prepared import Prepared
from qgraph.search.times import Times
from qgraph.search.units import Link, Unit, find_units, links
from qgraph.search.whole import Whole
from qgraph.tasks import Executor


@dataclass(eq=False)
class Workspace:
    """Everything that stays the same during a search.

    Attributes:
        job: Target, recipe and who listens.
        goal: What is asked for.
        metric: The metric, bound.
        parts: The data.
        prepared: The calibrated model.
        folder: Where models lie.
        judge: Scores on the samples that are searched with.
        store: Where measurements are kept.
        times: Where times come from, and sessions to score models in.
        executor: Runs the tasks of calibration, sensitivity and builds; None runs them in this process.
        units: What is decided.
        links: The values between units.
        option_names: The names of each unit's options.
        seconds: Time of each step.
        verdicts: What was scored so far.
        candidates: Whole models in other precisions.
    """

    job: Job
    goal: Goal
    metric: Metric
    parts: Parts
    prepared: Prepared
    folder: Path
    judge: Judge
    store: Cache | None
    times: Times
    executor: Executor | None = None
    units: list[Unit] = field(init=False)
    links: list[Link] = field(init=False)
    option_names: list[list[str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    candidates: Candidates = field(init=False)
    _mixes: dict[tuple[str, ...], Whole] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the units and write the float model."""
        graph = self.prepared.graph
        self.units = find_units(graph, self.job.target)
        self.links = links(graph, self.units, self.job.target)
        onnx_io.save(graph, self.folder / "fp32.onnx")
        self.candidates = Candidates(self.prepared, self.job, self.folder, self.executor)

    @property
    def sample(self) -> Feeds:
        """What models are timed on."""
        return self.parts.calibration[0]

    @property
    def floating(self) -> Whole:
        """The float model."""
        return Whole("fp32", "fp32", self.folder / "fp32.onnx")

    def mix(self, choice: Choice) -> Whole:
        """Build the model of a choice, once."""
        return self.build(self.floats(choice), choice.loss)

    def build(self, floats: tuple[str, ...], loss: float) -> Whole:
        """Build the model with these nodes in float, once; `loss` is predicted of it."""
        if floats not in self._mixes:
            self._mixes[floats] = self._built(floats, loss)
        return self._mixes[floats]

    def _built(self, floats: tuple[str, ...], loss: float) -> Whole:
        """Build a mix; what stands alone among floats, such as an Add, may have become one too."""
        if len(floats) == len(self.units):
            return self.floating
        graph, _ = self.prepared.mixed(floats)
        plan: Plan = graph.facts.get("plan")
        names = [unit.name for unit in self.units]
        left = tuple(name for name in names if plan.nodes[name][0] == "float")
        if len(left) == len(names):
            return self.floating
        known = next((whole for whole in self._mixes.values() if whole.floats == left), None)
        if known is not None:
            return known
        number = len(self._mixes)
        name = f"int8 x {len(names) - len(left)} (mix {number})" if left else "int8"
        path = self.folder / f"mix{number}.onnx"
        onnx_io.save(graph, path)
        return Whole(name, "int8", path, floats=left, loss=loss)

    def floats(self, choice: Choice) -> tuple[str, ...]:
        """Names of the nodes that a choice leaves in float."""
        pairs = zip(self.units, choice.options, self.option_names, strict=True)
        return tuple(unit.name for unit, index, names in pairs if names[index] == "fp32")

    def verdict(self, whole: Whole, engine: Engine) -> Verdict:
        """Score a model on the samples that are searched with, once."""
        key = f"{whole.name} {engine}"
        if key not in self.verdicts:
            with self.times.open(whole, engine) as session:
                self.verdicts[key] = self.judge.verdict(session, self.goal.max_drop)
        return self.verdicts[key]

    @contextmanager
    def timing(self, step: str) -> Iterator[None]:
        """Note how long a step takes, and tell that it begins."""
        self.job.listener.stage(step)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start
