"""Compares an artifact with the original on data that calibration never saw."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from qgraph.errors import DataError, EngineError
from qgraph.manifest import Accuracy
from qgraph.runtime.backend import Session
from qgraph.runtime.compare import Comparison, OutputComparison
from qgraph.runtime.reference import open_reference

Outputs = dict[str, NDArray[Any]]
Progress = Callable[[str, int, int | None], None]


def reference_outputs(
    original: Path,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    guessed: bool,
    progress: Progress,
) -> list[Outputs]:
    """Run the original, unoptimised, on every sample.

    Args:
        original: The model as the user gave it.
        feeds: Samples, feeds by input name.
        guessed: Whether the samples were made up from the inputs' types alone.
        progress: Told how far it is.

    Raises:
        DataError: The model refuses guessed samples, as it may where axes are dynamic.
        EngineError: onnxruntime can't run the original.
    """
    outputs = []
    with open_reference(original) as reference:
        for done, sample in enumerate(feeds):
            try:
                outputs.append(reference.run(sample))
            except EngineError as error:
                if not guessed:
                    raise
                shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in sample.items())
                raise DataError(
                    f"the original model refuses guessed inputs ({shapes})",
                    fix="pass samples that it takes with --data, "
                    "or sizes with --data random:AXIS=LENGTH,...",
                ) from error
            progress("running the original", done + 1, len(feeds))
    return outputs


def verify(
    expected: Sequence[Outputs],
    session: Session,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    kind: Literal["held out", "calibration", "random"],
    min_sqnr_db: float | None,
    min_cosine: float | None,
    progress: Progress,
) -> Accuracy:
    """Run the artifact on every sample and compare it, output by output, with the original.

    Args:
        expected: The original's outputs, one dict a sample.
        session: The artifact, in the engine that will run it.
        feeds: The samples.
        kind: Where the samples come from, for the record.
        min_sqnr_db: Floor for every float output, in dB; None for no floor.
        min_cosine: Floor for every float output's cosine; None for no floor.
        progress: Told how far it is.

    Returns:
        The comparison, with one line for each floor that was missed.
    """
    comparison = Comparison()
    for done, (sample, want) in enumerate(zip(feeds, expected, strict=True)):
        comparison.add(want, session.run(sample))
        progress("verifying", done + 1, len(feeds))
    results = comparison.results()
    failures = [line for each in results for line in _misses(each, min_sqnr_db, min_cosine)]
    return Accuracy(
        samples=len(feeds),
        data=kind,
        outputs=[each.as_json() for each in results],
        min_sqnr_db=min_sqnr_db,
        passed=not failures,
        failures=failures,
    )


def _misses(
    result: OutputComparison, min_sqnr_db: float | None, min_cosine: float | None
) -> list[str]:
    lines = []
    if result.nonfinite_mismatch:
        lines.append(
            f"output {result.name!r}: {result.nonfinite_mismatch} elements are NaN or infinite "
            "in one of the two only"
        )
    if min_sqnr_db is not None and result.sqnr_db is not None and result.sqnr_db < min_sqnr_db:
        lines.append(
            f"output {result.name!r}: SQNR {result.sqnr_db:.1f} dB is below {min_sqnr_db:g} dB"
        )
    if min_cosine is not None and result.cosine is not None and not result.cosine >= min_cosine:
        lines.append(f"output {result.name!r}: cosine {result.cosine:.4f} is below {min_cosine:g}")
    return lines
