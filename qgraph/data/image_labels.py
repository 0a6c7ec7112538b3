"""Labels of a folder of images: its `labels.csv`, or the names of its sub-folders.

`labels.csv` has a line `path,label` for each image, the path relative to the folder; `path,label`
as first line is a heading. Whole numbers become integers where all labels are such, else all stay
text.

Without it, the sub-folder directly below the folder is an image's class, as in torchvision's
ImageFolder: the classes are numbered from 0 in the order of their names
(https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.ImageFolder.html). Where all
names are whole numbers, those are the classes: sorted as text, 10 would come before 2.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from qgraph.errors import DataError

FILE = "labels.csv"
NAME = "label"


def image_labels(files: Sequence[Path], root: Path) -> list[int] | list[str] | None:
    """Return a label for each image, or None where the folder says none.

    Args:
        files: All images of the folder.
        root: The folder.

    Raises:
        DataError: `labels.csv` can't be read, or lacks an image.
    """
    names = [file.relative_to(root).as_posix() for file in files]
    if (root / FILE).is_file():
        return _numbers(_from_table(names, root / FILE))
    folders = [Path(name).parts[0] for name in names if "/" in name]
    if len(folders) < len(names):
        return None
    if all(folder.isdecimal() for folder in folders):
        return [int(folder) for folder in folders]
    classes = {folder: index for index, folder in enumerate(sorted(set(folders)))}
    # One folder is no classes: it just holds the images.
    return [classes[folder] for folder in folders] if len(classes) > 1 else None


def _from_table(names: Sequence[str], file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"can't be read ({error})", where=str(file)) from None
    bad = next((row for row in rows if len(row) != 2), None)
    if bad is not None:
        raise DataError(
            f"has a line of {len(bad)} fields ({','.join(bad)[:60]})",
            where=str(file),
            fix="write path,label in each line",
        )
    table = {path: label for path, label in rows}
    missing = next((name for name in names if name not in table), None)
    if missing is not None:
        raise DataError(f"has no line for {missing}", where=str(file), fix="add path,label")
    return [table[name] for name in names]


def _numbers(labels: list[str]) -> list[int] | list[str]:
    try:
        return [int(label) for label in labels]
    except ValueError:
        return labels
