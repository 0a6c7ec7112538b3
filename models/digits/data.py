"""The digits that the committed networks were trained, calibrated and tested on.

`load()` needs numpy only: it reads `digits.npz`, which lies beside this file. `load_training()`
needs scikit-learn and is for training alone; `python -m models.digits.data` rebuilds the npz.

The images are scikit-learn's `load_digits`: 1797 handwritten digits of 8x8 pixels with values 0
to 16, the test part of the UCI "Optical Recognition of Handwritten Digits" data set (CC BY 4.0,
https://doi.org/10.24432/C50P49).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

HERE = Path(__file__).resolve().parent
NPZ = HERE / "digits.npz"
SPLIT_SEED = 20240607
CALIBRATION_COUNT = 256
TEST_COUNT = 400
LARGEST_PIXEL = 16


@dataclass(frozen=True)
class Digits:
    """Labelled images of two disjoint parts.

    Attributes:
        train_x: float32 [N, 1, 8, 8] in 0 to 1. From `load()` these are 256 images to calibrate
            with; from `load_training()` all that the networks were trained on.
        train_y: int64 [N], the digit.
        test_x: float32 [400, 1, 8, 8] in 0 to 1, in no part of the training.
        test_y: int64 [400], the digit.
    """

    train_x: Images
    train_y: Labels
    test_x: Images
    test_y: Labels


def preprocess(pixels: npt.NDArray[np.uint8]) -> Images:
    """Scale `pixels`, uint8 [N, 8, 8] of 0 to 16, to float32 [N, 1, 8, 8] of 0 to 1."""
    return pixels[:, None].astype(np.float32) / np.float32(LARGEST_PIXEL)


def load() -> Digits:
    """Return the committed digits: 256 to calibrate with and 400 to test with."""
    with np.load(NPZ, allow_pickle=False) as parts:
        return Digits(
            preprocess(parts["calibration_x"]),
            parts["calibration_y"].astype(np.int64),
            preprocess(parts["test_x"]),
            parts["test_y"].astype(np.int64),
        )


def load_training() -> Digits:
    """Return all 1797 digits: 1397 to train with, the same 400 as `load()` to test with."""
    train_x, train_y, test_x, test_y = _split()
    return Digits(preprocess(train_x), train_y, preprocess(test_x), test_y)


def _split() -> tuple[npt.NDArray[np.uint8], Labels, npt.NDArray[np.uint8], Labels]:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped,import-not-found,unused-ignore]

    digits = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.images))
    pixels = digits.images.astype(np.uint8)[order]
    labels = digits.target.astype(np.int64)[order]
    return pixels[:-TEST_COUNT], labels[:-TEST_COUNT], pixels[-TEST_COUNT:], labels[-TEST_COUNT:]


def write_npz(path: Path = NPZ) -> None:
    """Write the calibration part (the first images trained on) and the test part to `path`."""
    train_x, train_y, test_x, test_y = _split()
    np.savez_compressed(
        path,
        calibration_x=train_x[:CALIBRATION_COUNT],
        calibration_y=train_y[:CALIBRATION_COUNT].astype(np.uint8),
        test_x=test_x,
        test_y=test_y.astype(np.uint8),
    )


if __name__ == "__main__":
    write_npz()
    print(f"{NPZ.name}: {NPZ.stat().st_size} bytes")
