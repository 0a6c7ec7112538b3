"""What `--io` can be asked of which model, checked before anything runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qgraph.data.image_options import ImageOptions
from qgraph.errors import UsageError
from qgraph.graph import Graph
from qgraph.interface import Pixels

if TYPE_CHECKING:
    from qgraph.passes.quantize_io import QuantizeIO


def image_input(inputs: Sequence[Any], images: ImageOptions | None) -> bool:
    """Whether a model takes raw images: the recipe has [images], and its only input fits.

    Args:
        inputs: The model's `Graph.signature()`.
        images: The recipe's table.
    """
    return (
        images is not None
        and len(inputs) == 1
        and inputs[0].dtype == "float32"
        and len(inputs[0].shape) == 4
    )


def check_io(
    options: "QuantizeIO",
    graph: Graph,
    images: ImageOptions | None,
    data: Iterable[Mapping[str, Any]] | None,
    *,
    given: bool = False,
) -> None:
    """Refuse what can't be done before anything runs.

    Args:
        options: What is wanted.
        graph: The model as it was given.
        images: The recipe's `[images]`.
        data: Calibration data; its first sample is read if it can be read again.
        given: Whether encodings are given instead.

    Raises:
        UsageError: Codes are wanted without data, or the model has no float input.
        DataError: Raw images are wanted, and the data isn't made of 8-bit pixels.
    """
    signature = graph.signature()
    if options.inputs != "float":
        if not any(each.dtype == "float32" for each in signature):
            raise UsageError(
                f"--io {options.inputs}: the model has no float32 input", fix="leave --io out"
            )
        pixels = image_input(signature, images)
        if data is None and not given and not pixels:
            raise UsageError(
                f"--io {options.inputs} needs calibration data, or a recipe with [images] for a "
                "model whose only input is a float32 image",
                fix="pass --data, or a recipe such as imagenet-mean",
            )
        if pixels and images is not None and data is not None and _read_again(data):
            first = next(iter(data))[signature[0].name]
            Pixels(options.inputs, options.layout, images).to_raw(first)
    if options.outputs not in ("auto", "float") and data is None:
        raise UsageError(
            f"--io-outputs {options.outputs} needs calibration data", fix="pass --data"
        )


def _read_again(data: Iterable[Any]) -> bool:
    """Whether data can be read more than once, and is data."""
    return bool(getattr(data, "rereadable", True)) and not getattr(data, "random", False)
