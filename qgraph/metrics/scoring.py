"""One pass over labelled data: every model runs on a sample before the next one is read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.data import DataSet
from qgraph.data.inputs import read_layout
from qgraph.errors import DataError, ModelError, QGraphError
from qgraph.metrics.metric import Contributions, Metric
from qgraph.runtime.backend import Session, TensorInfo
from qgraph.runtime.tensors import is_float

Outputs = dict[str, NDArray[Any]]
Progress = Callable[[int], None]


def sided(inputs: Sequence[TensorInfo], sides: Sequence[str]) -> list[TensorInfo]:
    """Return the inputs that data has to give: the model's, once for each side.

    Dynamic axes of two sides are not the same, except that of the batch.
    """
    batch = 1 if read_layout(inputs).uniform else 0
    return [
        TensorInfo(
            side + info.name,
            info.dtype,
            info.shape[:batch]
            + tuple(side + dim if isinstance(dim, str) else dim for dim in info.shape[batch:]),
        )
        for side in sides
        for info in inputs
    ]


def run_sides(session: Session, sides: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> Outputs:
    """Run a model once for each side; names of outputs get the side's prefix, as feeds have it.

    Feeds for inputs that the model lacks are left out: a decoder may have caches, and its original
    none.
    """
    outputs: Outputs = {}
    names = [info.name for info in session.inputs]
    for side in sides:
        own = {name: feeds[side + name] for name in names if side + name in feeds}
        outputs |= {side + name: array for name, array in session.run(own).items()}
    return outputs


def score_data(
    sessions: Mapping[str, Session],
    originals: Mapping[str, str],
    metric: Metric,
    data: DataSet,
    progress: Progress,
) -> dict[str, Contributions]:
    """Run all models on all samples and collect what each contributes.

    Args:
        sessions: The models, by a name for messages.
        originals: For metrics that read the original's outputs: the original's name by that of the
            model; other models get no contributions.
        metric: What to score.
        data: Labelled samples with the inputs of `sided`.
        progress: Told the number of samples done.

    Returns:
        float64 [rows, k] for each model.

    Raises:
        DataError: Labels that don't fit, or a contribution that is no number.
        ModelError: NaN in an output.
        UsageError: It can't be told which output the metric reads.
    """
    rows: dict[str, list[Contributions]] = {
        name: [] for name in (originals if metric.versus_original else sessions)
    }
    for index, (feeds, labels) in enumerate(data.labelled()):
        place = f"{data.where}: sample {index}"
        known = {**feeds, **labels}
        kept: dict[str, Outputs] = {}
        for name, session in sessions.items():
            outputs = run_sides(session, metric.sides, feeds)
            _check_numbers(outputs, f"{place}: {name}")
            if metric.versus_original:
                kept[name] = outputs
                continue
            with _at(f"{place}: {name}"):
                rows[name].append(_finite(metric.contributions(outputs, known)))
        for name, original in originals.items() if kept else ():
            with _at(f"{place}: {name}"):
                rows[name].append(_finite(metric.contributions(kept[name], kept[original])))
        progress(index + 1)
    return {name: np.concatenate(each) for name, each in rows.items()}


def _check_numbers(outputs: Outputs, where: str) -> None:
    for name, array in outputs.items():
        # The least value is NaN if any is, and takes no memory, unlike a mask of all.
        if is_float(array.dtype) and array.size and np.isnan(array.min()):
            raise ModelError(
                f"output {name!r} has NaN",
                where=where,
                fix="look at that sample, or compile with more layers in float (--exclude)",
            )


def _finite(rows: Contributions) -> Contributions:
    if not np.isfinite(rows).all():
        raise DataError("the sample's contribution is not finite", fix="look at that sample")
    return rows


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Say in errors where they arose."""
    try:
        yield
    except QGraphError as error:
        error.where = f"{place}, {error.where}" if error.where else place
        raise
