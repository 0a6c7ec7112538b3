"""Whether a bound from few images holds on as many others: by counting answers that changed, and by margins.

    python -m benchmarks.margins PHOTOGRAPHS [--models mobilenet_v2] [--count 222] [--draws 200]

PHOTOGRAPHS as for `benchmarks.promise --images`. Models in int8, bf16 and int8-dynamic answer all of them. Then subsets are
drawn, twice as many further images of which the original's margins are known, and as many again that a
bound is held to: the mean of both bounds, and in how many draws the drop is larger.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import qgraph
from benchmarks.promise.data import Work, works
from benchmarks.promise.measure import contributions
from qgraph.artifact import Artifact
from qgraph.data.inputs import Sample
from qgraph.errors import AccuracyError
from qgraph.metrics.metric import Contributions
from qgraph.runtime import backend
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
        "model", "precision", "drop, all", "counted: bound, missed", "margins: bound, missed"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for work in works(args.models.split(","), images=args.photographs):
            everything = with_all_kept(work)
            with backend("onnxruntime-cpu").open(work.model) as session:
                theirs = contributions(session, everything)
            for precision in PRECISIONS:
                with artifact(work, precision, Path(scratch)).open() as session:
                    ours = contributions(session, everything)
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


def with_all_kept(work: Work) -> Work:
    """The same with all images kept aside."""
    label = next(iter(work.kept[0].labels))
    searched = [
        Sample({k: v for k, v in r.items() if k != label}, {label: r[label]}) for r in work.search
    ]
    return replace(work, kept=[*searched, *work.kept])


def compare(
    work: Work, ours: Contributions, theirs: Contributions, count: int, draws: int
) -> list[str]:
    """Return the drop on all images, and of both ways the mean bound and how often it is too low."""
    rng, metric = np.random.default_rng(0), work.metric
    counted, by_margins, shown = [], [], []
    for _ in range(draws):
        drawn = rng.permutation(len(ours))
        mine, again, others = np.split(drawn[: min(4 * count, len(drawn))], [count, 2 * count])
        verdict = judged(metric, ours[mine], theirs[mine], _STRICT, [theirs[others]])
        counted.append(verdict.high)
        by_margins.append(verdict.upper)
        shown.append(metric.score(theirs[again]) - metric.score(ours[again]))

    def told(bounds: Sequence[float | None]) -> str:
        found = np.array(bounds, np.float64)
        return f"{found.mean():.4f}, {np.mean(found < np.array(shown) - 1e-12):.1%}"

    drop = metric.score(theirs) - metric.score(ours)
    return [f"{drop:.4f}", told(counted), told(by_margins)]


if __name__ == "__main__":
    sys.exit(main())
