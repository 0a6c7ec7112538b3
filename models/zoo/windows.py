"""Token windows to calibrate decoders with: `python -m models.zoo.windows TEXT... -o FILE.npz`.

Texts are put one behind the other, an end-of-text token after each, and cut into windows of equal
length; the rest is left out. Without texts, the language reference that comes with Python (module
`pydoc_data`, about 110,000 tokens of technical English) is cut. Perplexity is honest only on other
text than the calibration's: give `--part calibration` and `--part evaluation`, of which the first is
the first three quarters of the windows.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.zoo.wheels import models_root
from qgraph.errors import DataError, QGraphError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SEPARATOR = "<|endoftext|>"
PARTS = ("all", "calibration", "evaluation")


def cut(texts: Iterable[str], tokenizer: "Tokenizer", length: int) -> npt.NDArray[np.int64]:
    """Return windows of tokens, int64 [n, length].

    Args:
        texts: In the order in which they are read.
        tokenizer: Of the decoder.
        length: Tokens in a window.

    Raises:
        DataError: The texts are shorter than one window.
    """
    end = tokenizer.token_to_id(SEPARATOR)
    separator = [] if end is None else [end]
    ids = [i for text in texts for i in (*tokenizer.encode(text).ids, *separator)]
    count = len(ids) // length
    if not count:
        raise DataError(f"has {len(ids)} tokens, a window takes {length}", where="text")
    return np.array(ids[: count * length], np.int64).reshape(count, length)


def python_reference() -> list[str]:
    """Return the topics of Python's language reference, as `help()` shows them."""
    from pydoc_data import topics

    return [text for _, text in sorted(topics.topics.items())]


def part_of(windows: npt.NDArray[np.int64], part: str) -> npt.NDArray[np.int64]:
    """Return all windows, the first three quarters (calibration) or the rest (evaluation)."""
    middle = len(windows) * 3 // 4
    return {"all": windows, "calibration": windows[:middle], "evaluation": windows[middle:]}[part]


def main(arguments: list[str] | None = None) -> int:
    """Write the windows that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description="Cut text into windows of tokens.")
    parser.add_argument("texts", nargs="*", type=Path, metavar="TEXT", help="UTF-8 files")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.npz", required=True)
    parser.add_argument("--length", type=int, default=512, help="tokens in a window")
    parser.add_argument("--part", choices=PARTS, default="all", help="which of the windows")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="its tokenizer.json")
    args = parser.parse_args(arguments)
    place = args.tokenizer or models_root() / "onnx" / "tokenizer.json"
    try:
        texts = [path.read_text(encoding="utf-8") for path in args.texts] or python_reference()
        windows = part_of(cut(texts, _load(place), args.length), args.part)
        np.savez(args.output, input_ids=windows)
    except (QGraphError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {windows.shape[0]} windows of {windows.shape[1]} tokens")
    return 0


def _load(path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    if not path.is_file():
        fix = "run `python -m models.zoo.smollm2`, or pass --tokenizer"
        raise UsageError("no such file", where=str(path), fix=fix)
    return Tokenizer.from_file(str(path))


if __name__ == "__main__":
    sys.exit(main())
