"""Accuracy of int8 by recipe, on every model that is present, against the float model.

    python -m benchmarks.accuracy [--recipes default,best] [--models mobilenet_v2,minilm_l6_v2]
                                  [--target tensorrt] [--set pass.option=value ...]

Models: the networks of models/digits, PP-OCRv6 small of models/zoo (fetched from PyPI), and, where
they lie in `$QGRAPH_SHARED` or ../shared beside the checkout (models/, data/) or in
`$MODELS_ROOT/onnx`, mobilenet_v2, efficientnet_lite0 and minilm_l6_v2 with their data. Each is
calibrated on one part of its data and scored on another: images 0 to 127 and 128 to 199; the first
256 sentences and the pairs of STS 2015; lines rendered for calibration and others for evaluation.
`none` is a recipe name here: `default` with every repair switched off. `NAME+PASS+...` switches
repairs on, as in `none+smooth+correct_bias`. Artifacts for a target without an engine here are scored
in the unoptimised reference.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import qgraph
from qgraph.artifact import Artifact
from qgraph.data.inputs import Feeds, Sample
from qgraph.metrics import metric
from qgraph.metrics.metric import Metric
from qgraph.metrics.scoring import run_sides
from qgraph.runtime import backend
from qgraph.runtime.backend import Session
from qgraph.runtime.reference import open_reference

ROOT = Path(__file__).resolve().parent.parent
REPAIRS = ("smooth", "equalize_layers", "equalize_depthwise", "adaround", "correct_bias")
# Mean and standard deviation of the pixels, 0 to 1, that classifiers of images expect.
IMAGE_MODELS = {
    "mobilenet_v2": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "efficientnet_lite0": ([0.5] * 3, [0.5] * 3),
}


@dataclass
class Task:
    """A model with data.

    Attributes:
        name: For `--models`.
        model: Its file.
        calibration: Samples to calibrate with.
        evaluation: Labelled samples to score on, in batches, as the metric takes them.
        metric: What the outputs are worth; None where there are no labels.
    """

    name: str
    model: Path
    calibration: list[Feeds]
    evaluation: list[Sample]
    metric: Metric | None

    @property
    def sides(self) -> tuple[str, ...]:
        """Prefixes of inputs and outputs; see `Metric`."""
        return self.metric.sides if self.metric else ("",)

    def run(self, session: Session) -> list[Feeds]:
        """All outputs of the evaluation samples."""
        return [run_sides(session, self.sides, sample.feeds) for sample in self.evaluation]

    def score(self, outputs: list[Feeds]) -> str:
        """The metric's name and what these outputs are worth; empty without a metric."""
        if self.metric is None:
            return ""
        rows = [
            self.metric.contributions(each, sample.labels)
            for each, sample in zip(outputs, self.evaluation, strict=True)
        ]
        return f"{self.metric.name} {self.metric.score(np.concatenate(rows)):.4f}"


def main() -> int:
    """Compile every model with every recipe and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", default="none,fast,default,best")
    parser.add_argument("--models", default="", help="names, comma-separated; default: all")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    args = parser.parse_args()
    wanted = [name for name in args.models.split(",") if name]
    table = Table("model", "recipe", "SQNR dB", "score int8", "score fp32", "compile s")
    for task in tasks(wanted):
        with backend("onnxruntime-cpu").open(task.model) as session:
            exact = task.run(session)
        for recipe in args.recipes.split(","):
            name, *repairs = recipe.split("+")
            off = REPAIRS if name == "none" else ()
            settings = [f"{each}.enabled=false" for each in off]
            settings += [f"{each}.enabled=true" for each in repairs] + args.settings
            recipe_name = "default" if name == "none" else name
            row = measure(task, args.target, recipe_name, settings, exact)
            table.add_row(task.name, recipe, *row)
            print(task.name, recipe, *row, flush=True)
    Console(width=110).print(table)
    return 0


def measure(
    task: Task, target: str, recipe: str, settings: list[str], exact: list[Feeds]
) -> list[str]:
    """SQNR of the first output, score of the artifact and of the float model, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        output = Path(folder) / "artifact"
        try:
            artifact = qgraph.compile(
                task.model,
                output=output,
                target=target,
                precision="int8",
                recipe=recipe,
                settings=settings,
                data=task.calibration,
            )
        except qgraph.QGraphError as error:
            print(f"note: {error}", file=sys.stderr)
            artifact = Artifact.load(output)
        seconds = time.perf_counter() - started
        # The artifact's file in one engine, so that machines with other engines compare.
        runs = artifact.manifest.engine is not None
        open_model = backend("onnxruntime-cpu").open if runs else open_reference
        with open_model(artifact.model_path) as session:
            got = task.run(session)
    return [
        f"{sqnr(exact, got, task.sides):.2f}",
        task.score(got),
        task.score(exact),
        f"{seconds:.1f}",
    ]


def sqnr(exact: list[Feeds], got: list[Feeds], sides: Sequence[str] = ("",)) -> float:
    """Signal to quantization noise ratio of the last output over all samples, decibels."""
    signal = noise = 0.0
    last = [[name for name in exact[0] if name.startswith(side)][-1] for side in sides]
    for want, have in zip(exact, got, strict=True):
        for name in last:
            signal += float(np.square(want[name], dtype=np.float64).sum())
            noise += float(np.square(want[name].astype(np.float64) - have[name]).sum())
    return 10 * float(np.log10(signal / noise)) if noise else float("inf")


# -- models ----------------------------------------------------------------------------------------


def tasks(wanted: list[str]) -> Iterator[Task]:
    """Every task whose model and data are present; what is missing is said."""
    makers: dict[str, Callable[[str], Task | None]] = {
        **dict.fromkeys(IMAGE_MODELS, _images),
        "minilm_l6_v2": _sentences,
        "ppocrv6_rec_small": _lines,
        "digits_cnn": _digits,
        "digits_vit": _digits,
        "digits_gru": _digits,
    }
    for name in wanted or makers:
        task = makers[name](name)
        if task is None:
            print(f"note: {name} or its data is not here (set QGRAPH_SHARED)", file=sys.stderr)
        else:
            yield task


def find_file(kind: str, name: str) -> Path | None:
    """Where a file of `models` or of `data` lies; None if it is not here."""
    shared = Path(os.environ.get("QGRAPH_SHARED") or ROOT.parent / "shared")
    store = Path(os.environ.get("MODELS_ROOT") or ROOT / ".models")
    places = [shared / kind / name, store / "onnx" / name]
    return next((path for path in places if path.is_file()), None)


def _rows(x: np.ndarray[Any, Any], name: str) -> list[Feeds]:
    return [{name: x[i : i + 1]} for i in range(len(x))]


def labelled(
    inputs: Feeds, labels: np.ndarray[Any, Any], size: int, name: str = "label"
) -> list[Sample]:
    """Cut arrays with samples along the first axis into batches."""
    parts = (slice(i, i + size) for i in range(0, len(labels), size))
    return [Sample({k: x[part] for k, x in inputs.items()}, {name: labels[part]}) for part in parts]


def normalized(
    pixels: np.ndarray[Any, Any], mean: Sequence[float], std: Sequence[float]
) -> np.ndarray[Any, Any]:
    """Turn uint8 [n, h, w, 3] into float32 [n, 3, h, w] as a classifier of `IMAGE_MODELS` takes it."""
    shift, scale = np.array(mean, np.float32), np.array(std, np.float32)
    scaled = (pixels.astype(np.float32) / 255 - shift) / scale
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _images(name: str) -> Task | None:
    model = find_file("models", f"{name}.onnx")
    file = find_file("data", "imagenet_calib200_224_u8.npz")
    if model is None or file is None:
        return None
    with np.load(file) as data:
        x, labels = normalized(data["x"], *IMAGE_MODELS[name]), data["y"]
    evaluation = labelled({"input": x[128:]}, labels[128:], 8)
    return Task(name, model, _rows(x[:128], "input"), evaluation, metric("top1"))


def _digits(name: str) -> Task:
    from models.digits.data import load

    digits = load()
    model = ROOT / "models" / "digits" / f"{name}.onnx"
    evaluation = labelled({"image": digits.test_x}, digits.test_y, 50)
    return Task(name, model, _rows(digits.train_x, "image"), evaluation, metric("top1"))


def _sentences(name: str) -> Task | None:
    model = find_file("models", f"{name}.onnx")
    files = [find_file("data", f"minilm_sts15_{part}.npz") for part in ("calib", "eval")]
    if model is None or files[0] is None or files[1] is None:
        return None
    with np.load(files[0]) as data:
        calibration = [_tokens(row[None]) for row in next(iter(data.values()))[:256]]
    with np.load(files[1]) as data:
        pairs = labelled({side: data[side] for side in ("a", "b")}, data["score"], 64, "score")
    evaluation = [
        Sample(
            {f"{side}.{k}": x for side, ids in feeds.items() for k, x in _tokens(ids).items()},
            labels,
        )
        for feeds, labels in pairs
    ]
    return Task(name, model, calibration, evaluation, metric("spearman"))


def _tokens(ids: np.ndarray[Any, Any]) -> Feeds:
    used = ids[:, : max(1, int((ids != 0).sum(1).max()))].astype(np.int64)
    return {"input_ids": used, "attention_mask": (used != 0).astype(np.int64)}


def _lines(name: str) -> Task:
    from models.zoo import ppocr
    from models.zoo.fonts import load_fonts
    from models.zoo.textlines import draw_lines

    model, fonts = ppocr.fetch(), load_fonts()
    calibration = draw_lines(48, split="calibration", fonts=fonts)
    evaluation = draw_lines(120, split="evaluation", fonts=fonts)
    return Task(
        name,
        model,
        [{ppocr.INPUT: line.tensor()} for line in calibration],
        [
            Sample({ppocr.INPUT: line.tensor()}, {"text": np.array([line.text])})
            for line in evaluation
        ],
        metric("cer").bind([model]),
    )


if __name__ == "__main__":
    sys.exit(main())
