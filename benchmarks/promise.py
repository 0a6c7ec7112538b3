"""Does a promise hold on data that no search has seen, and is what keeps it the fastest?

    python -m benchmarks.promise [--models digits_cnn,mobilenet_v2] [--drops 0.5%,0.1%]
    python -m benchmarks.promise --units 50,200,800

Models are those of `benchmarks.accuracy`, where they and their data are found. Of the labelled data
a part is kept aside: images 128 to 199, digits 100 to 399 of the test part, the last third of the
sentence pairs, other text lines. On that part every artifact is scored beside the original: those of
the promises, int8 of everything, and fp32, bf16 and int8-dynamic. All are timed in turn in one run.

With `--units`, chains of convolutions with so many units: how long the search takes, in runs of the
original over the data.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import qgraph
from benchmarks.accuracy import labelled, tasks
from qgraph.artifact import Artifact
from qgraph.data.inputs import Sample
from qgraph.errors import AccuracyError, QGraphError
from qgraph.metrics.comparison import compare
from qgraph.metrics.metric import Contributions, Metric
from qgraph.metrics.scoring import run_sides
from qgraph.runtime import backend
from qgraph.runtime.backend import Session
from qgraph.runtime.bench import bench
from qgraph.search import compile_within

OTHERS = ("int8", "fp32", "bf16", "int8-dynamic")
MODELS = "digits_cnn,digits_vit,digits_gru,mobilenet_v2,efficientnet_lite0,minilm_l6_v2,ppocrv6_rec_small"
# What half a point of a share is for metrics that are none.
DROPS = {"spearman": {"0.5%": "0.003", "0.1%": "0.001"}, "cer": {"0.5%": "0.002", "0.1%": "0.001"}}


@dataclass
class Work:
    """A model with labelled samples for the search, and others kept aside."""

    name: str
    model: Path
    metric: Metric
    search: list[dict[str, Any]]
    kept: list[Sample]


def works(names: Sequence[str]) -> list[Work]:
    """The models that are here, each with its data in two parts."""
    found = []
    for task in tasks(list(names)):
        if task.metric is None:
            continue
        samples = task.evaluation
        rows = [
            {name: array[i : i + 1] for name, array in {**s.feeds, **s.labels}.items()}
            for s in samples
            for i in range(len(next(iter(s.labels.values()))))
        ]
        if task.name.startswith("digits"):
            from models.digits.data import load

            digits = load()
            first = [
                {"image": x[None], "label": y[None]}
                for x, y in zip(digits.train_x, digits.train_y, strict=True)
            ]
            kept = labelled({"image": digits.test_x[100:]}, digits.test_y[100:], 50)
            found.append(Work(task.name, task.model, task.metric, [*first, *rows[:100]], kept))
        elif len(task.calibration) == 128:  # images, whose calibration part has labels too
            labels = _image_labels()[: len(task.calibration)]
            search = [
                {**feeds, "label": label[None]}
                for feeds, label in zip(task.calibration, labels, strict=True)
            ]
            found.append(Work(task.name, task.model, task.metric, search, samples))
        else:
            cut = 2 * len(rows) // 3
            kept = [_sample(row, samples[0]) for row in rows[cut:]]
            found.append(Work(task.name, task.model, task.metric, rows[:cut], kept))
    return found


def _image_labels() -> Any:
    from benchmarks.accuracy import _find

    file = _find("data", "imagenet_calib200_224_u8.npz")
    assert file is not None
    with np.load(file) as data:
        return data["y"]


def _sample(row: dict[str, Any], like: Sample) -> Sample:
    return Sample({k: row[k] for k in like.feeds}, {k: row[k] for k in like.labels})


def contributions(session: Session, work: Work) -> Contributions:
    """What the samples kept aside contribute."""
    return np.concatenate(
        [
            work.metric.contributions(
                run_sides(session, work.metric.sides, s.feeds), {**s.feeds, **s.labels}
            )
            for s in work.kept
        ]
    )


def measure(work: Work, drops: Sequence[str], recipe: str, folder: Path) -> Table:
    """Build everything, score it on what was kept aside, time it in turn."""
    artifacts: dict[str, Artifact] = {}
    notes: dict[str, str] = {}
    feeds = [{k: v for k, v in row.items()} for row in work.search]
    for drop in drops:
        asked = DROPS.get(work.metric.name, {}).get(drop, drop)
        name = f"promise {asked}"
        start = time.perf_counter()
        try:
            artifacts[name] = compile_within(
                work.model, data=feeds, metric=work.metric, max_drop=asked, recipe=recipe,
                output=folder / name.replace(" ", "-"),
            )  # fmt: skip
        except AccuracyError as error:
            print(f"note: {work.name}: {error}", file=sys.stderr)
            artifacts[name] = Artifact.load(folder / name.replace(" ", "-"))
        seconds = time.perf_counter() - start
        found = json.loads((artifacts[name].path / "search.json").read_text())
        notes[name] = f"{found['plain_evaluations']:.0f} evaluations, {seconds:.0f} s in all"
    side = work.metric.sides[0]
    calibration = [
        {k.removeprefix(side): v for k, v in row.items() if k.startswith(side)} for row in feeds
    ]
    for precision in OTHERS:
        try:
            artifacts[precision] = qgraph.compile(
                work.model, data=_inputs(work.model, calibration), precision=precision,
                recipe=recipe, output=folder / precision,
            )  # fmt: skip
        except AccuracyError:
            artifacts[precision] = Artifact.load(folder / precision)
        except QGraphError as error:
            print(f"note: {work.name} {precision}: {error}", file=sys.stderr)
    with backend("onnxruntime-cpu").open(work.model) as session:
        exact = contributions(session, work)
    sample = {info: calibration[0][info] for info in _names(work.model)}
    times = bench({k: a.open for k, a in artifacts.items()}, sample, seconds=2.0)
    fastest = min(result.p10_ms for result in times)
    columns = ("p10 ms", "p50 ms", "by the fastest", "drop", "95% interval", "notes")
    table = Table("model", "artifact", "runs in", *columns)
    for result in times:
        artifact = artifacts[result.name]
        with artifact.open() as session:
            found = compare(work.metric, contributions(session, work), exact).change
        sign = -1 if work.metric.better == "higher" else 1
        ends = sorted(sign * end for end in found.interval)
        promise = artifact.manifest.promise
        row = (
            f"{result.p10_ms:.3f}",
            f"{result.p50_ms:.3f}",
            f"{result.p10_ms / fastest:.2f}",
            f"{sign * found.value + 0.0:.4f}",
            " to ".join(f"{end:.4f}" for end in ends),
            "; ".join([notes.get(result.name, ""), promise.reason if promise else ""]).strip("; "),
        )
        engine = artifact.manifest.engine
        table.add_row(work.name, result.name, engine.backend if engine else "", *row)
        print(work.name, result.name, *row, sep=" | ", flush=True)
    return table


def _names(model: Path) -> list[str]:
    return [info.name for info in qgraph.load(model).signature()]


def _inputs(model: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = _names(model)
    return [{name: row[name] for name in names} for row in rows]


# -- how search time grows -------------------------------------------------------------------------


def chain(units: int, folder: Path) -> Path:
    """A network of `units` convolutions with ReLU, in residual pairs, and a classifier."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for index in range(units - 1):
        weight = rng.normal(0, (2 / (16 * 9)) ** 0.5, (16, 16, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(
            helper.make_node(
                "Conv", [value, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1] * 4
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"))
        value = f"r{index}"
    weights.append(numpy_helper.from_array(rng.normal(0, 0.3, (16, 10)).astype(np.float32), "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["p"], "pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"], "flatten"))
    nodes.append(helper.make_node("Gemm", ["f", "head"], ["y"], "gemm"))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "chain", [info("x", 1, ["n", 16, 16, 16])], [info("y", 1, ["n", 10])], weights
    )
    path = folder / f"chain{units}.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return path


def growth(counts: Sequence[int], folder: Path) -> Table:
    """Search times of chains of several lengths."""
    table = Table("units", "search, s", "in runs of the original over the data", "per unit")
    images = np.random.default_rng(1).normal(size=(192, 16, 16, 16)).astype(np.float32)
    for count in counts:
        output = folder / f"chain{count}"
        try:
            compile_within(
                chain(count, folder),
                data={"x": images},
                max_drop="2%",
                recipe="fast",
                output=output,
            )
        except AccuracyError as error:
            print(f"note: {error}", file=sys.stderr)
        found = json.loads((output / "search.json").read_text())
        evaluations = found["plain_evaluations"]
        seconds = sum(found["seconds"].values())
        row = (str(count), f"{seconds:.1f}", f"{evaluations:.1f}", f"{evaluations / count:.2f}")
        table.add_row(*row)
        print(*row, found["seconds"], sep=" | ", flush=True)
    return table


def main() -> int:
    """Run what was asked for and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--drops", default="0.5%,0.1%")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--units", default="")
    args = parser.parse_args()
    console = Console(width=180)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if args.units:
            console.print(growth([int(each) for each in args.units.split(",")], folder))
            return 0
        for work in works(args.models.split(",")):
            (folder / work.name).mkdir()
            console.print(measure(work, args.drops.split(","), args.recipe, folder / work.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
