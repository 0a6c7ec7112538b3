"""The models with their labelled data: what is searched with, and what is kept aside."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import IMAGE_MODELS, Task, find_file, normalized, tasks
from benchmarks.promise.images import Labels, Pixels, read_images
from qgraph.data.inputs import Sample
from qgraph.metrics import metric
from qgraph.metrics.metric import Metric

Row = dict[str, Any]
# Every third image is kept aside.
THIRD = 3
LINES_MODEL = "ppocrv6_rec_small"


@dataclass
class Work:
    """A model with labelled data, one row a sample.

    Attributes:
        name: The model's.
        model: Its file.
        metric: What its outputs are worth.
        search: Inputs and labels for the search.
        kept: What is kept aside.
    """

    name: str
    model: Path
    metric: Metric
    search: list[Row]
    kept: list[Sample]

    @property
    def feeds(self) -> list[Row]:
        """The model's inputs of the search; of pairs the first."""
        side = self.metric.sides[0]
        labels = self.kept[0].labels
        return [
            {
                name.removeprefix(side): array
                for name, array in row.items()
                if name.startswith(side) and name not in labels
            }
            for row in self.search
        ]


def works(names: Sequence[str], lines: int = 0, images: Path | None = None) -> Iterator[Work]:
    """The models that are here, each with its data in two parts.

    Args:
        names: Which; what is missing is said and left out.
        lines: So many rendered lines for the search of a text recogniser and half as many kept
            aside; 0 takes those of `benchmarks.accuracy`.
        images: Images for classifiers, see `read_images`; None takes those of `benchmarks.accuracy`.
    """
    for name in names:
        if images is not None and name in IMAGE_MODELS:
            yield from _photographs(name, *read_images(images))
        elif lines and name == LINES_MODEL:
            yield _lines(name, lines)
        else:
            yield from (_divided(task) for task in tasks([name]) if task.metric)


def _photographs(name: str, pixels: Pixels, labels: Labels) -> Iterator[Work]:
    model = find_file("models", f"{name}.onnx")
    if model is None:
        print(f"note: {name} is not here (set QGRAPH_SHARED)", file=sys.stderr)
        return
    rows = [
        {"input": normalized(pixels[i : i + 1], *IMAGE_MODELS[name]), "label": labels[i : i + 1]}
        for i in range(len(labels))
    ]
    search = [row for i, row in enumerate(rows) if i % THIRD != THIRD - 1]
    yield Work(name, model, metric("top1"), search, _samples(rows[THIRD - 1 :: THIRD], "label"))


def _lines(name: str, count: int) -> Work:
    """The parts of rendered lines share no text, and one seed gives the same on each machine."""
    from models.zoo import ppocr
    from models.zoo.fonts import load_fonts
    from models.zoo.textlines import draw_lines

    model, fonts = ppocr.fetch(), load_fonts()
    search, kept = (
        [
            {ppocr.INPUT: line.tensor(), "text": np.array([line.text])}
            for line in draw_lines(most, split=split, fonts=fonts)
        ]
        for split, most in (("calibration", count), ("evaluation", max(1, count // 2)))
    )
    return Work(name, model, metric("cer").bind([model]), search, _samples(kept, "text"))


def _divided(task: Task) -> Work:
    """A task of `benchmarks.accuracy`, its data in two parts."""
    assert task.metric is not None
    rows = [
        {name: array[i : i + 1] for name, array in {**s.feeds, **s.labels}.items()}
        for s in task.evaluation
        for i in range(len(next(iter(s.labels.values()))))
    ]
    label = next(iter(task.evaluation[0].labels))
    if task.name.startswith("digits"):
        from models.digits.data import load

        digits = load()
        first = [
            {"image": x[None], "label": y[None]}
            for x, y in zip(digits.train_x, digits.train_y, strict=True)
        ]
        search, kept = [*first, *rows[:100]], rows[100:]
    elif task.name in IMAGE_MODELS:  # the calibration part has labels too
        labels = _image_labels()[: len(task.calibration)]
        search = [
            {**feeds, "label": each[None]}
            for feeds, each in zip(task.calibration, labels, strict=True)
        ]
        kept = rows
    else:
        cut = 2 * len(rows) // 3
        search, kept = rows[:cut], rows[cut:]
    return Work(task.name, task.model, task.metric, search, _samples(kept, label))


def _image_labels() -> Labels:
    file = find_file("data", "imagenet_calib200_224_u8.npz")
    assert file is not None
    with np.load(file) as data:
        labels: Labels = data["y"]
    return labels


def _samples(rows: Sequence[Row], label: str) -> list[Sample]:
    return [
        Sample({k: v for k, v in row.items() if k != label}, {label: row[label]}) for row in rows
    ]
