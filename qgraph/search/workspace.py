"""What every search works on: its data, its aim, a folder for models, and who judges them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from qgraph.cache import Cache
from qgraph.data import Feeds
from qgraph.job import Job
from qgraph.metrics.metric import Metric
from qgraph.search.costs import Engine
from qgraph.search.goal import Goal
from qgraph.search.judge import Judge, Verdict
from qgraph.search.parts import Parts
from qgraph.search.times import Times
from qgraph.search.whole import Whole
from qgraph.tasks import Executor


@dataclass(eq=False, kw_only=True)
class Workspace:
    """Everything that stays the same during a search.

    Attributes:
        job: Target, recipe and who listens.
        goal: What is asked for.
        metric: The metric, bound.
        parts: The data.
        folder: Where models lie.
        judge: Scores on the samples that are searched with.
        store: Where measurements are kept.
        times: Where times come from, and sessions to score models in.
        executor: Runs the tasks of calibration, sensitivity and builds; None runs them in this process.
        seconds: Time of each step.
        verdicts: What was scored so far.
    """

    job: Job
    goal: Goal
    metric: Metric
    parts: Parts
    folder: Path
    judge: Judge
    store: Cache | None
    times: Times
    executor: Executor | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def given(self) -> dict[str, Any]:
        """Return what it was made of, for a workspace of one kind of search."""
        return {each.name: getattr(self, each.name) for each in fields(Workspace)}

    @property
    def sample(self) -> Feeds:
        """What models are timed on."""
        return self.parts.calibration[0]

    @property
    def floating(self) -> Whole:
        """The float model."""
        return Whole("fp32", "fp32", self.folder / "fp32.onnx")

    def verdict(self, whole: Whole, engine: Engine) -> Verdict:
        """Score a model on the samples that are searched with, once."""
        key = f"{whole.name} {engine}"
        if key not in self.verdicts:
            with self.times.open(whole, engine) as session:
                self.verdicts[key] = self.judge.verdict(session, self.goal.max_drop)
        return self.verdicts[key]

    def progress(self, what: str) -> Any:
        """Return what tells the listener how much of a step is done."""
        return lambda done, total: self.job.listener.progress(what, done, total)

    @contextmanager
    def timing(self, step: str) -> Iterator[None]:
        """Note how long a step takes, and tell that it begins."""
        self.job.listener.stage(step)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start
