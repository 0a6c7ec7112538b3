"""What a compile starts from: the model's file, its data, and what passes are told."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qgraph import flow, onnx_io
from qgraph.artifact import MODEL
from qgraph.context import Context
from qgraph.data import DataSet, open_data
from qgraph.encodings_json import Encodings, read_encodings
from qgraph.errors import DataError, UsageError
from qgraph.graph import Graph
from qgraph.job import Job
from qgraph.kv_cache import cache_axes
from qgraph.recognise import quantized_ops
from qgraph.tasks import Executor, InProcess, open_executor

# Precisions whose calibration tasks do.
TASKS_OF = ("int8", "w8a16")


def given_encodings(source: Any, job: Job) -> Encodings | None:
    """Read the encodings that replace calibration, which only int8 has."""
    if source is None:
        return None
    if job.precision != "int8":
        raise UsageError(
            f"encodings are for int8, not {job.precision}", fix="compile with --precision int8"
        )
    return read_encodings(source)


def check_io_options(graph: Graph, job: Job, data: DataSet | None, given: Encodings | None) -> None:
    """Refuse inputs and outputs that can't be made."""
    from qgraph.io_options import check_io
    from qgraph.passes.quantize_io import QuantizeIO

    wanted = QuantizeIO.with_options(job.recipe.passes.get(QuantizeIO.name, {}))
    if not (isinstance(wanted, QuantizeIO) and wanted.active):
        return
    if job.precision == "as is":
        job.warn("inputs and outputs stay as they are, as the rest of the model does")
        return
    check_io(wanted, graph, job.recipe.images, data, given=given is not None)


@contextmanager
def original_file(model: Any) -> Iterator[Path]:
    """Give the model as a file: what the artifact is compared with."""
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        yield path / MODEL if path.is_dir() else path
        return
    with tempfile.TemporaryDirectory(prefix="qgraph-") as folder:
        path = Path(folder) / MODEL
        onnx_io.save(onnx_io.load(model), path)
        yield path


def split_data(
    graph: Graph, data: Any, samples: int | None, job: Job, given: Encodings | None = None
) -> tuple[DataSet | None, DataSet | None, DataSet | None]:
    """Open the data and keep some of it out of calibration; given encodings need none."""
    found = quantized_ops(graph)
    if found and job.precision != "fp32":
        listed = ", ".join(f"{count} {op}" for op, count in sorted(found.items()))
        job.warn(f"the model is already quantized ({listed}): it is left intact")
        job.precision = "as is"
    if data is None:
        if job.precision in ("int8", "w8a16", "fp8") and given is None:
            if job.precision != "int8" or "int8-dynamic" not in job.target.precisions:
                raise DataError(
                    f"{job.precision} for target {job.target.name!r} needs calibration data",
                    fix="pass --data",
                )
            job.warn(
                "int8 needs calibration data: built int8-dynamic instead; pass --data for int8"
            )
            job.precision = "int8-dynamic"
        elif given is not None and job.precision == "int8":
            passes, off = flow.without_data(job.recipe.passes)
            job.recipe = job.recipe.model_copy(update={"passes": passes})
            if off:
                job.warn(f"without data these are left out: {', '.join(off)}; pass --data for them")
        return None, None, None
    dataset = open_data(
        data,
        graph.signature(),
        images=job.recipe.images,
        caches=cache_axes(graph),
        samples=samples or job.recipe.samples,
    )
    if dataset.random:
        job.warn("calibrated on random data: accuracy on real data is unknown")
    if dataset.count == 1 or (isinstance(data, list | tuple) and len(data) == 1):
        job.warn("one sample can't be split: the artifact is verified on the one it was made with")
        return dataset, dataset, None
    calibration, held_out = dataset.split(job.recipe.verify.held_out)
    return dataset, calibration, held_out


def job_executor(job: Job, workers: int | None, ray: str | None) -> Executor:
    """Choose who runs the job's tasks; nothing starts before there are some.

    Raises:
        UsageError: The precision has no tasks, or what `open_executor` says.
    """
    asked = ray is not None or (workers or 1) > 1
    if asked and job.precision not in TASKS_OF:
        named = "--ray" if ray is not None else "--workers"
        raise UsageError(
            f"{named} has nothing to do: {job.precision} is made in one process",
            fix=f"leave it out; it is for {' and '.join(TASKS_OF)}, whose calibration is cut up",
        )
    return open_executor(workers, ray)


def job_context(
    job: Job,
    calibration: DataSet | None,
    given: Encodings | None,
    executor: Executor | None = None,
) -> Context:
    """Return what passes are told."""
    return Context(
        target=job.target,
        recipe=job.recipe,
        data=calibration,
        exclude=job.exclude,
        encodings=given,
        # Alone, this process keeps checkpoints, which tasks have not.
        tasks=None if isinstance(executor, InProcess) else executor,
        warn=job.warn,
        info=job.listener.info,
        progress=job.listener.progress,
        starting=job.listener.stage,
    )
