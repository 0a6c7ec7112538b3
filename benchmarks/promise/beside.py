"""Files that other tools made: which engine runs them rightly, and fastest."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.accuracy import sqnr
from benchmarks.promise.data import Work
from qgraph.data.inputs import Feeds
from qgraph.errors import QGraphError
from qgraph.metrics.scoring import run_sides
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions, Session, Tunable
from qgraph.runtime.choose import Candidate, fastest
from qgraph.runtime.reference import open_reference
from qgraph.target import target

# Answers are right where they are this close to those of the same file, unoptimised. Engines that
# round differently stay above 20 dB; those that compute something else come to 5 or less.
LEAST_DB = 10.0
_SAMPLES = 16


@dataclass(frozen=True)
class Other:
    """A file of another tool in the engine that runs it fastest.

    Attributes:
        name: The file's, without its suffix.
        way: The engine, with what is not its default.
        model: The file.
        backend: The engine's name.
        options: How it runs.
        notes: What was refused.
    """

    name: str
    way: str
    model: Path
    backend: str
    options: EngineOptions
    notes: str

    def open(self) -> Session:
        """Open it."""
        return backend(self.backend).open(self.model, self.options)


def others(folder: Path, work: Work, sample: Feeds) -> Iterator[Other]:
    """The files `FOLDER/MODEL/*.onnx` that an engine runs; what can't be used is said.

    Args:
        folder: With a folder for each model.
        work: The model and its data.
        sample: What is timed.
    """
    for file in sorted((folder / work.name).glob("*.onnx")):
        try:
            found = _fastest(file, work, sample)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the rest goes on
            print(f"note: {work.name} {file.name}: {error}", file=sys.stderr)
        else:
            yield found


def _fastest(file: Path, work: Work, sample: Feeds) -> Other:
    with open_reference(file) as session:
        right = _answers(session, work)
    candidates, notes = [], []
    for way, (name, options) in _ways().items():
        try:
            with backend(name).open(file, options) as session:
                found = sqnr(right, _answers(session, work), work.metric.sides)
        except QGraphError as error:
            notes.append(f"{way}: {error}")
            continue
        # A NaN is not above anything.
        if found >= LEAST_DB:
            candidates.append(Candidate(name, file, options, way))
        else:
            notes.append(f"{way} is wrong: {found:.1f} dB")
    if not candidates:
        raise QGraphError(f"no engine runs it rightly ({'; '.join(notes)})")
    best = fastest(candidates, sample, budget_s=1.5 * len(candidates))[0]
    if best.result is None:
        raise QGraphError(best.reason)
    chosen = best.candidate
    return Other(file.stem, str(chosen), file, chosen.backend, chosen.options, "; ".join(notes))


def _answers(session: Session, work: Work) -> list[Feeds]:
    """Outputs for some of the samples kept aside."""
    step = max(1, len(work.kept) // _SAMPLES)
    return [
        _floats(run_sides(session, work.metric.sides, sample.feeds))
        for sample in work.kept[::step][:_SAMPLES]
    ]


def _floats(outputs: Feeds) -> Feeds:
    return {name: array.astype(np.float32) for name, array in outputs.items()}


def _ways() -> Mapping[str, tuple[str, EngineOptions]]:
    """Every way of the target's engines that are here, by what to call it."""
    found: dict[str, tuple[str, EngineOptions]] = {}
    for name in target("cpu").engines:
        engine = backend(name)
        if engine.unavailable() is not None:
            continue
        for precision in ("fp32", "bf16"):
            every = engine.variants(precision) if isinstance(engine, Tunable) else {}
            for options in every.values() or [EngineOptions()]:
                way = str(Candidate(name, Path(), options))
                found[way] = (name, options)
    return found
