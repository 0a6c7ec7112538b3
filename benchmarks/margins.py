"""How well few images tell what a model loses: by counting answers that changed, and by margins.

    python -m benchmarks.margins PHOTOGRAPHS [--models mobilenet_v2] [--count 222] [--draws 200]

PHOTOGRAPHS as for `benchmarks.promise --images`. Models in int8, bf16 and int8-dynamic answer all of them; then
subsets are drawn, and what each says is compared with what all others lose: the deviation of both
estimates, and in how many draws the upper end of each 95% interval lies below what all images lose.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import qgraph
from benchmarks.promise.data import Work, works
from qgraph.artifact import Artifact
from qgraph.errors import AccuracyError
from qgraph.metrics.margins import likely_drop
from qgraph.metrics.metric import Contributions
from qgraph.metrics.scoring import run_sides
from qgraph.runtime import backend
from qgraph.runtime.backend import Session
from qgraph.search.judge import judged

PRECISIONS = ("int8", "bf16", "int8-dynamic")
# So little may be lost that any number of samples here is too few.
_STRICT = 1e-9


def main() -> int:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--models", default="mobilenet_v2,efficientnet_lite0")
    parser.add_argument("--count", type=int, default=222, help="images a subset")
    parser.add_argument("--draws", type=int, default=200)
    args = parser.parse_args()
    table = Table(
        *("model", "precision", "drop, all", "counted: mean, deviation, misses"),
        *("margins: mean, deviation, misses",),
    )
    with tempfile.TemporaryDirectory() as scratch:
        for work in works(args.models.split(","), images=args.photographs):
            with backend("onnxruntime-cpu").open(work.model) as session:
                theirs = answers(session, work)
            for precision in PRECISIONS:
                with artifact(work, precision, Path(scratch)).open() as session:
                    ours = answers(session, work)
                row = compare(work, ours, theirs, args.count, args.draws)
                table.add_row(work.name, precision, *row)
                print(work.name, precision, *row, sep=" | ", flush=True)
    Console(width=140).print(table)
    return 0


def artifact(work: Work, precision: str, folder: Path) -> Artifact:
    """Compile, whatever is lost."""
    output = folder / f"{work.name}-{precision}"
    try:
        return qgraph.compile(work.model, data=work.feeds, precision=precision, output=output)
    except AccuracyError:
        return Artifact.load(output)


def answers(session: Session, work: Work) -> Contributions:
    """What all images contribute."""
    rows = [*work.search, *({**s.feeds, **s.labels} for s in work.kept)]
    label = next(iter(work.kept[0].labels))
    metric = work.metric
    return np.concatenate(
        [
            metric.contributions(
                run_sides(session, metric.sides, {k: v for k, v in row.items() if k != label}), row
            )
            for row in rows
        ]
    )


def compare(
    work: Work, ours: Contributions, theirs: Contributions, count: int, draws: int
) -> list[str]:
    """Return the drop on all images, and how well subsets tell it in both ways."""
    truth = work.metric.score(theirs) - work.metric.score(ours)
    rng = np.random.default_rng(0)
    subsets = [rng.permutation(len(ours))[:count] for _ in range(draws)]
    found = [judged(work.metric, ours[drawn], theirs[drawn], _STRICT) for drawn in subsets]

    moves = ours[:, 2] - theirs[:, 2]

    def told(drop: Callable[[int], float], high: Callable[[int], float]) -> str:
        values: NDArray[np.float64] = np.array([drop(i) for i in range(draws)])
        missed = np.mean([high(i) < truth for i in range(draws)])
        return f"{values.mean():.4f}, {values.std():.4f}, {missed:.1%}"

    return [
        f"{truth:.4f}",
        told(lambda i: found[i].drop, lambda i: found[i].high),
        told(
            lambda i: likely_drop(theirs[subsets[i], 2], moves[subsets[i]]),
            lambda i: found[i].upper or 0.0,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
