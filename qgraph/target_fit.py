"""Whether a model fits a target at all: shapes before compiling, size after it."""

from qgraph import text
from qgraph.errors import ModelError
from qgraph.graph import Graph
from qgraph.runtime.backend import TensorInfo
from qgraph.target import Target


def check_shapes(graph: Graph, target: Target) -> None:
    """Refuse inputs whose shapes the target can't take.

    Raises:
        ModelError: An input has a dynamic axis, or another batch than the target's; it is named.
    """
    for value in graph.signature():
        if target.fixed_shapes and not all(isinstance(length, int) for length in value.shape):
            raise _refused(value, target, "takes fixed shapes only")
        # Vectors and scalars have no batch axis.
        if target.batch is not None and len(value.shape) > 1 and value.shape[0] != target.batch:
            raise _refused(value, target, f"takes batches of {target.batch} only")


def too_large(target: Target, size: int) -> str | None:
    """Warn of a model of `size` bytes that the target has no room for; None if it has."""
    if target.memory is None or size <= target.memory:
        return None
    return (
        f"the model takes {text.size(size)}, target {target.name} has {text.size(target.memory)} "
        "for it: expect it to be slow, or to fail"
    )


def _refused(value: TensorInfo, target: Target, what: str) -> ModelError:
    return ModelError(
        f"input {value}: target {target.name!r} {what}",
        fix="export the model with such shapes",
    )
