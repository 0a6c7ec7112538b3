"""Hooks between passes: dump, print, time, verify, stop. See `qgraph.pipeline.Pipeline`."""

import re
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qgraph import onnx_io
from qgraph.errors import (
    AccuracyError,
    EngineError,
    ModelError,
    QGraphError,
    UsageError,
    unknown_name,
)
from qgraph.float_session import FloatSession
from qgraph.graph import Graph
from qgraph.graph_text import graph_text
from qgraph.interface import Interface
from qgraph.pipeline import Hook, Stage
from qgraph.structure import check_structure

Level = Literal["structure", "onnx", "numeric"]
LEVELS: tuple[Level, ...] = ("structure", "onnx", "numeric")

# Exact passes may change outputs by rounding only: of the output's range.
EXACT_RTOL = 1e-4

_DUMP = re.compile(r"\d{3}_[\w-]+\.onnx(\.data)?")


class Stopped(Exception):  # noqa: N818 - no error: the user asked for it
    """Raised behind the pass after which the user wants to stop.

    Attributes:
        graph: The graph as that pass left it.
        stage: What the pass did.
    """

    def __init__(self, graph: Graph, stage: Stage) -> None:
        """Keep both."""
        super().__init__(stage.name)
        self.graph, self.stage = graph, stage


def dump_ir(folder: Path) -> Hook:
    """Return a hook that writes the graph after each pass: `001_normalize.onnx`, ...

    Args:
        folder: Where to; made if missing. Dumps of an earlier run are replaced.

    Raises:
        UsageError: The folder holds something else.
    """
    try:
        old = list(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise UsageError(f"can't dump here: {error.strerror}", where=str(folder)) from error
    if other := [path.name for path in old if not _DUMP.fullmatch(path.name)]:
        raise UsageError(
            f"holds other files than dumps, such as {other[0]!r}",
            where=str(folder),
            fix="name an empty folder for --dump-ir",
        )
    count = 0

    def hook(graph: Graph, stage: Stage) -> None:
        nonlocal count
        count += 1
        if count == 1:
            _empty(folder, old)
        onnx_io.save(graph, folder / f"{count:03}_{stage.name}.onnx")

    return hook


def _empty(folder: Path, old: list[Path]) -> None:
    """Make the folder, without the dumps of an earlier run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in old:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"can't dump here: {error.strerror}", where=str(folder)) from error


def print_after(names: Collection[str], write: Callable[[str], object]) -> Hook:
    """Return a hook that writes the graph as text after the passes named.

    Args:
        names: Passes, or `all`.
        write: Called with the text, a few lines or many.
    """

    def hook(graph: Graph, stage: Stage) -> None:
        if stage.name in names or "all" in names:
            write(f"--- after {stage.name} ---\n{graph_text(graph)}\n")

    return hook


def collect(stages: list[Stage]) -> Hook:
    """Return a hook that appends every stage to `stages`, for timing what ran so far."""

    def hook(graph: Graph, stage: Stage) -> None:
        stages.append(stage)

    return hook


def stop_after(name: str) -> Hook:
    """Return a hook that raises `Stopped` behind the first run of a pass."""

    def hook(graph: Graph, stage: Stage) -> None:
        if stage.name == name:
            raise Stopped(graph, stage)

    return hook


def verify(level: str, original: Path, feeds: Mapping[str, NDArray[Any]] | None = None) -> Hook:
    """Return a hook that checks the graph after every pass that changed it.

    Args:
        level: `structure`: every input is written before it is read, names are unique; `onnx`:
            that, and onnx's checker; `numeric`: both, and exact passes must keep the original's
            outputs within 1e-4 of their range, in the unoptimised reference. A rounding pass may
            change them; what comes after it is held to its outputs.
        original: The model's file before any pass.
        feeds: What to run it on with `numeric`, by input name; None for random values.

    Raises:
        UsageError: There is no such level.
        EngineError: The reference can't run the original on the feeds (with `numeric`).
    """
    if level not in LEVELS:
        raise unknown_name("verify level", level, LEVELS)
    numbers = _Numbers(original, feeds) if level == "numeric" else None

    def hook(graph: Graph, stage: Stage) -> None:
        if not stage.report.changed:
            return
        try:
            check_structure(graph)
            if level != "structure":
                _check_onnx(graph)
        except ModelError as error:
            raise ModelError(
                f"pass {stage.name!r} broke the model: {error}", fix=_ADVICE
            ) from error
        if numbers is not None:
            numbers.check(graph, stage)

    return hook


_ADVICE = "this is a bug in the pass; please report it with the model"


def _check_onnx(graph: Graph) -> None:
    if onnx_io.weight_bytes(graph) <= onnx_io.EXTERNAL_ABOVE_BYTES:
        onnx_io.check(onnx_io.to_proto(graph), where="model")
        return
    with tempfile.TemporaryDirectory(prefix="qgraph-verify-") as folder:
        path = Path(folder) / "model.onnx"
        onnx_io.save(graph, path)
        onnx_io.load(path)  # loading checks


class _Numbers:
    """Outputs of the original, or of the graph behind the last pass that may round."""

    def __init__(self, original: Path, feeds: Mapping[str, NDArray[Any]] | None) -> None:
        from qgraph.runtime.feeds import random_feeds
        from qgraph.runtime.reference import open_reference

        with open_reference(original) as session:
            made_up = random_feeds(session.inputs, np.random.default_rng(0))
            self.feeds = made_up if feeds is None else feeds
            try:
                self.expected = session.run(self.feeds)
            except EngineError as error:
                what = "random values" if feeds is None else "the data"
                raise EngineError(
                    f"the original can't be run on {what} ({error})",
                    where=str(original),
                    fix="pass --data: its first sample is used then" if feeds is None else "",
                ) from error
        self.against = "the original"

    def check(self, graph: Graph, stage: Stage) -> None:
        from qgraph.runtime.compare import compare

        found = self._run(graph, stage)
        if stage.numerics == "rounding":
            self.expected, self.against = found, f"the graph after {stage.name!r}"
            return
        for result in compare(self.expected, found):
            off = result.max_relative
            wrong = result.exact_share < 1 if off is None else not off <= EXACT_RTOL
            if not wrong:
                continue
            amount = (
                f"in {1 - result.exact_share:.2%} of its elements"
                if off is None
                else f"by {off:.2g} of its range (allowed: {EXACT_RTOL:g})"
            )
            raise AccuracyError(
                f"pass {stage.name!r} broke the model: output {result.name!r} differs from "
                f"{self.against} {amount}",
                fix=_ADVICE,
            )

    def _run(self, graph: Graph, stage: Stage) -> dict[str, NDArray[Any]]:
        from qgraph.runtime.reference import open_reference

        with tempfile.TemporaryDirectory(prefix="qgraph-verify-") as folder:
            path = Path(folder) / "model.onnx"
            onnx_io.save(graph, path)
            try:
                with open_reference(path) as session:
                    floats = FloatSession(session, graph.facts.io or Interface(), nearest=True)
                    return floats.run(self.feeds)
            except QGraphError as error:
                raise ModelError(
                    f"pass {stage.name!r} broke the model: {error}", fix=_ADVICE
                ) from error
