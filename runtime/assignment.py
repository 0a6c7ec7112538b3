"""Which nodes an engine left to another provider, and what they cost.

ONNX Runtime gives a node that a provider has no kernel for to the CPU's, and copies its inputs and outputs
between the two. It also keeps on the CPU what computes shapes, on purpose: these few numbers are needed
there. The profile tells the two apart: computed shapes are integers from beginning to end.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qgraph.errors import QGraphError
from qgraph.runtime.backend import Backend, EngineOptions, ExecutedOp
from qgraph.runtime.executed import executed_ops

_SHAPES = ("Shape", "Size")
_COPIES = ("MemcpyToHost", "MemcpyFromHost")
_INTEGERS = ("int64", "int32", "bool")
_NAMED = 4


@runtime_checkable
class Provided(Protocol):
    """A backend whose nodes should run in one provider of ONNX Runtime."""

    provider: str


def left_behind(
    backend: Backend,
    model: Path,
    feeds: Mapping[str, Any],
    options: EngineOptions,
    p50_ms: float,
) -> list[str]:
    """Warn of nodes that did not run in the backend's own provider, with their cost.

    Args:
        backend: The engine.
        model: What it runs.
        feeds: One sample.
        options: How it was opened.
        p50_ms: Latency of a run.

    Returns:
        One line, or none where all ran as they should or the backend has no provider of its own.
    """
    if not isinstance(backend, Provided):
        return []
    try:
        ran = executed_ops(model, feeds, backend, options)
    except QGraphError as error:
        return [f"which nodes ran where is unknown: {error}"]
    return describe(ran, backend.provider, p50_ms)


def strays(ran: Sequence[ExecutedOp], provider: str) -> list[ExecutedOp]:
    """Kernels of other providers than `provider`, without computed shapes."""
    return [op for op in ran if op.provider != provider and not _computes_shapes(op)]


def describe(ran: Sequence[ExecutedOp], provider: str, p50_ms: float) -> list[str]:
    """The warning of `left_behind` for what ran."""
    found = strays(ran, provider)
    if not found:
        return []
    kinds = Counter(
        f"{op.op_type} in {op.provider.removesuffix('ExecutionProvider')}" for op in found
    )
    listed = [f"{count} {kind}" for kind, count in kinds.most_common(_NAMED)]
    more = len(kinds) - len(listed)
    copies = [op for op in ran if op.op_type in _COPIES]
    spent = sum(op.time_us or 0 for op in found) / 1e3
    copying = sum(op.time_us or 0 for op in copies) / 1e3
    line = (
        f"{len(found)} nodes did not run in {provider.removesuffix('ExecutionProvider')}: "
        f"{', '.join(listed)}{f' and {more} more kinds' if more else ''}; "
        f"they took {spent:.3f} ms of {p50_ms:.3f} ms ({spent / p50_ms:.0%})"
    )
    if copies:
        line += f", and {len(copies)} copies between the two {copying:.3f} ms"
    return [line]


def _computes_shapes(op: ExecutedOp) -> bool:
    types = op.output_dtypes if op.op_type in _SHAPES else (*op.input_dtypes, *op.output_dtypes)
    return bool(types) and all(dtype in _INTEGERS for dtype in types)
