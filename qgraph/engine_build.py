"""Builds an engine of a compiled model, and leaves in float what its builder refuses."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qgraph import onnx_io
from qgraph.artifact import EXPLAIN
from qgraph.errors import EngineError
from qgraph.job import Job
from qgraph.quantized_units import QuantizedUnit, drop_units, find_culprits, quantized_units
from qgraph.runtime import backend
from qgraph.runtime.builder import Builder, BuildRequest, Built, NotBuiltError
from qgraph.text import few, one_line

_LONGEST = 300


@dataclass(frozen=True)
class EngineBuild:
    """An engine that stands beside the compiled model.

    Attributes:
        backend: Name of the backend that built it.
        built: The engine.
        dropped: By node name, why its Q/DQ was taken away.
    """

    backend: str
    built: Built
    dropped: Mapping[str, str] = field(default_factory=dict)


def build_engine(job: Job, model: Path, shapes: Mapping[str, Sequence[int]]) -> EngineBuild | None:
    """Build the target's engine and write it beside the model.

    Where the builder refuses a quantized unit, the model is written again with that unit in float.

    Args:
        job: The compile; told how far the build is, and warned of what was left in float.
        model: What was compiled.
        shapes: By input name, a shape to build for where the recipe names none.

    Returns:
        The engine; None where the target's engines are not built, or not here.

    Raises:
        EngineError: The engine refuses the model, in float too.
    """
    for name in job.target.engines:
        engine = backend(name)
        if not isinstance(engine, Builder) or engine.cannot_build() is not None:
            continue
        job.listener.stage("building the engine")
        request = BuildRequest(
            shapes, job.recipe.engine_options(name), job.target.variant, job.listener.progress
        )
        dropped: dict[str, str] = {}
        try:
            built = engine.build(model, request)
        except NotBuiltError as error:
            job.listener.stage("looking for what the engine refuses")
            dropped = _leave_in_float(engine, model, request, error)
            built = engine.build(model, request)
            reasons = few(list(dict.fromkeys(dropped.values())))
            job.warn(f"{few(list(dropped))} stay in float, which {name} refuses: {reasons}")
        engine.write(built, model)
        return EngineBuild(name, built, dropped)
    return None


def note_dropped(build: EngineBuild | None, folder: Path, nodes: dict[str, int]) -> dict[str, int]:
    """Put what was left in float into explain.json, and into the counts of nodes by precision."""
    if build is None or not build.dropped:
        return nodes
    file = folder / EXPLAIN
    content: dict[str, Any] = json.loads(file.read_bytes())
    counts = Counter(nodes)
    for name, reason in build.dropped.items():
        before = content["nodes"].get(name)
        if before is not None:
            counts.subtract([before[0]])
            counts.update(["float"])
        content["nodes"][name] = ["float", f"{build.backend} refuses it: {reason}"]
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return {precision: count for precision, count in counts.items() if count}


def _leave_in_float(
    engine: Builder, model: Path, request: BuildRequest, error: NotBuiltError
) -> dict[str, str]:
    """Write the model again without the Q/DQ of what the builder refuses.

    Returns:
        By name of the node that a unit is about, what the builder says.

    Raises:
        EngineError: The builder refuses it in float too, or every unit of it.
    """
    graph = onnx_io.load(model)
    units = quantized_units(graph)
    del graph
    silent = BuildRequest(request.shapes, request.options, request.capability)
    with tempfile.TemporaryDirectory(prefix=".without.", dir=model.parent) as folder:
        path = Path(folder) / model.name

        def refuses(kept: Sequence[QuantizedUnit]) -> str | None:
            _write_without(model, path, [each for each in units if each not in kept])
            try:
                engine.build(path, silent)
            except NotBuiltError as found:
                return one_line(found.reasons[0] if found.reasons else found.what)[:_LONGEST]
            return None

        if not units or refuses([]) is not None:
            raise error
        # Builders often name the node: then few builds find it.
        hinted = [each for each in units if any(each.node in line for line in error.reasons)]
        culprits = find_culprits(units, refuses, hinted)
        if len(culprits) == len(units):
            raise EngineError(
                f"refuses all {len(units)} quantized units: {next(iter(culprits.values()))}",
                where=request.capability or "the engine",
                fix="compile with --precision fp16, or for another --sm",
            ) from error
        _write_without(model, path, list(culprits))
        for file in Path(folder).iterdir():
            file.replace(model.with_name(file.name))
    return {unit.node: reason for unit, reason in culprits.items()}


def _write_without(model: Path, path: Path, units: Sequence[QuantizedUnit]) -> None:
    graph = onnx_io.load(model)
    drop_units(graph, units)
    onnx_io.save(graph, path)
