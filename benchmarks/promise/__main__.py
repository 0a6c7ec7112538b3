"""Does a promise hold on data that no search has seen, and is what keeps it the fastest?

    python -m benchmarks.promise [--models digits_cnn,mobilenet_v2] [--drops 0.5%,0.1%]
    python -m benchmarks.promise --lines 1500 --images PHOTOGRAPHS --beside FILES --json ROWS.json
    python -m benchmarks.promise --units 50,200,800

Models are those of `benchmarks.accuracy`, where they and their data are found. Of the labelled data
a part is kept aside: images 128 to 199, digits 100 to 399 of the test part, the last third of the
sentence pairs, other text lines. On that part every artifact is scored beside the original, sample by
sample: those of the promises, int8 of everything, and fp32, bf16 and int8-dynamic. All are timed in
turn in one run.

With so little data one sample decides more than the drop that is allowed. There can be more:

- `--lines N` renders N text lines to search with, and half as many with other texts to keep aside.
- `--images` takes a folder of photographs `nXXXXXXXX_name.JPEG` with each of the 1,000 classes, such
  as https://github.com/EliSchwartz/imagenet-sample-images, or an .npz made of one (`--pixels FILE`
  writes it). Every third is kept aside. Of that repository, the 200 images of `benchmarks.accuracy`
  are a part, to the bit.

With `--beside FOLDER`, the files `FOLDER/MODEL/*.onnx`, made by other tools, are scored and timed in
the same run: each in every engine of the target `cpu`, of which the fastest counts that gives about
the same answers as the file does unoptimised. What can't be used is a note.

`--json FILE` writes all rows as JSON, after each model.

With `--units`, chains of convolutions with so many units: how long the search takes, in runs of the
original over the data.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.promise.data import works
from benchmarks.promise.growth import growth
from benchmarks.promise.images import write_images
from benchmarks.promise.measure import measure
from benchmarks.promise.rows import Row, table

MODELS = "digits_cnn,digits_vit,digits_gru,mobilenet_v2,efficientnet_lite0,minilm_l6_v2,ppocrv6_rec_small"


def main() -> int:
    """Run what was asked for and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--drops", default="0.5%,0.1%")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--lines", type=int, default=0, help="text lines to search with")
    parser.add_argument("--images", type=Path, help="folder of photographs, or .npz")
    parser.add_argument("--pixels", type=Path, help="write --images into this .npz, and end")
    parser.add_argument("--beside", type=Path, help="folder of other tools' files")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--units", default="")
    args = parser.parse_args()
    if args.pixels:
        if not args.images:
            parser.error("--pixels needs --images")
        write_images(args.images, args.pixels)
        return 0
    console = Console(width=180)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if args.units:
            console.print(growth([int(each) for each in args.units.split(",")], folder))
            return 0
        for work in works(args.models.split(","), args.lines, args.images):
            (folder / work.name).mkdir()
            found = measure(
                work, args.drops.split(","), args.recipe, folder / work.name, args.beside
            )
            console.print(table(found))
            rows += found
            if args.json:
                _write(args.json, rows)
    return 0


def _write(file: Path, rows: Sequence[Row]) -> None:
    file.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
