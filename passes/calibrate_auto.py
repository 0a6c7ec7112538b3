"""Takes each value's range from the observer with the least error on samples held back."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.encoding import Spec, encode_range
from qgraph.errors import DataError
from qgraph.graph import Graph
from qgraph.passes.calibrate_shards import count_shards, judge_shards, place
from qgraph.passes.calibration_resume import Checkpoints, Progress, look_through
from qgraph.passes.collect import Timing
from qgraph.passes.collect_errors import candidate_errors, channel_weights
from qgraph.passes.collect_heldback import HeldBack
from qgraph.passes.collect_values import watch
from qgraph.passes.observers.auto import Statistics, choose

_Found = TypeVar("_Found")
Ranges = dict[str, tuple[float, float]]


def choose_ranges(
    graph: Graph,
    specs: Mapping[str, Spec],
    context: Context,
    checkpoints: Checkpoints | None,
    *,
    memory: int,
) -> tuple[Ranges, list[str]]:
    """Return each value's range and the report's lines.

    Args:
        graph: Float graph.
        specs: By name of the values, what they will be encoded as.
        context: Has the data.
        checkpoints: Where to keep what was seen.
        memory: Bytes for observed values; a quarter bounds the samples kept to measure errors on.

    Raises:
        DataError: The data makes a value NaN or infinite, or a value is always empty.
    """
    assert context.data is not None
    samples = HeldBack(context.data, memory // 4)
    # Statistics of the samples that are not held back, and of those that are.
    seen = {
        place(name, held): Statistics(spec)
        for name, spec in specs.items()
        for held in (False, True)
    }

    def look(part: Iterable[Mapping[str, Any]], start: int, progress: Progress) -> Timing:
        def count(index: int, name: str, value: NDArray[np.floating]) -> None:
            seen[place(name, samples.held[index])].observe(value)

        return watch(graph, list(specs), part, count, memory=memory, progress=progress, first=start)

    if context.tasks is None:
        timing, resumed = look_through(samples, look, seen, checkpoints, context)
    else:
        timing = count_shards(graph, specs, samples, seen, context, memory, memory // 4)
        resumed = 0
    lines = [timing.line(), *resumed_line(resumed)]
    candidates = {}
    for name, spec in specs.items():
        rest, held = seen[place(name, False)], seen[place(name, True)]
        found = asked(name, (held if rest.empty else rest).candidates)
        candidates[name] = {key: encode_range(*span, spec) for key, span in found.items()}
    values = {v.name: v for v in [*graph.inputs, *(o for n in graph.nodes() for o in n.outputs)]}
    weights = {name: channel_weights(graph, values[name]) for name in specs}
    kept = samples.samples
    if context.tasks is None:
        timing, errors = candidate_errors(
            graph, kept, candidates, weights, memory=memory, progress=context.progress
        )
    else:
        timing, errors = judge_shards(graph, kept, candidates, weights, context, memory)
    lines.append(f"{len(kept)} samples held back: {timing.line()}")
    ranges = {}
    for name in specs:
        method = choose(errors[name])
        lines.append(f"{name}: {method}")
        whole = seen[place(name, False)]
        whole.merge(seen[place(name, True)])
        ranges[name] = whole.range(method)
    return ranges, lines


def asked(name: str, ask: Callable[[], _Found]) -> _Found:
    """Ask an observer for what it saw; if that is nothing, say of which value.

    Raises:
        DataError: The value was always empty.
    """
    try:
        return ask()
    except ValueError as error:
        raise DataError(
            f"{name!r} was empty in every sample", fix="pass data that reaches it, or exclude it"
        ) from error


def resumed_line(samples: int) -> list[str]:
    """Say for the report how many samples an interrupted run had done, if any."""
    return [f"{samples} more samples were done by an interrupted run"] if samples else []
