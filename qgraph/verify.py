"""Compares an artifact with the original on data that calibration never saw."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from qgraph.manifest import Accuracy
from qgraph.runtime.backend import Session
from qgraph.runtime.compare import Comparison, OutputComparison
from qgraph.runtime.reference import open_reference

Progress = Callable[[str, int, int | None], None]


def verify(
    original: Path,
    session: Session,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    kind: Literal["held out", "calibration", "random"],
    state: Collection[str],
    min_sqnr_db: float | None,
    min_cosine: float | None,
    progress: Progress,
) -> Accuracy:
    """Run the artifact and the original on every sample and compare them, output by output.

    Both stay open together, so that no more than one sample's outputs are held: a decoder's
    logits are 100 MB a sample.

    Args:
        original: The model as the user gave it; it runs unoptimised.
        session: The artifact, in the engine that will run it.
        feeds: The samples.
        kind: Where the samples come from, for the record.
        state: Outputs that are KV caches. The model itself reads them, and what their errors do to
            its answers shows there: floors are not for them.
        min_sqnr_db: Floor for every other float output, in dB; None for no floor.
        min_cosine: Floor for every other float output's cosine; None for no floor.
        progress: Told how far it is.

    Returns:
        The comparison, with one line for each floor that was missed, and for each output with
        numbers that are finite in one of the two only.

    Raises:
        EngineError: onnxruntime can't run the original.
    """
    comparison = Comparison()
    with open_reference(original) as reference:
        for done, sample in enumerate(feeds):
            comparison.add(reference.run(sample), session.run(sample))
            progress("verifying", done + 1, len(feeds))
    results = comparison.results()
    failures = []
    for each in results:
        floors = (None, None) if each.name in state else (min_sqnr_db, min_cosine)
        failures += _misses(each, *floors)
    return Accuracy(
        samples=len(feeds),
        data=kind,
        outputs=[each.as_json() for each in results],
        state=[each.name for each in results if each.name in state],
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
