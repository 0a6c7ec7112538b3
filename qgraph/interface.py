"""What an artifact takes and hands out instead of floats: raw pixels, integer codes.

Left on the graph by the pass `quantize_io`, kept in the manifest and the model's metadata, and
used to feed an artifact with samples meant for the original.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from qgraph.data.image_options import ImageOptions
from qgraph.data.pixels import normalize
from qgraph.encoding import INTEGERS, Encoding, dequantize, quantize
from qgraph.errors import ArtifactError, DataError
from qgraph.runtime.backend import TensorInfo

Array = NDArray[Any]
Feeds = dict[str, Array]
Layout = Literal["NCHW", "NHWC"]
InputType = Literal["float", "uint8", "int8"]
OutputType = Literal["auto", "float", "uint8", "int8", "uint16", "int16"]

# A float image is one of 8-bit pixels if none lies further from one, in steps of a pixel. Floats
# of 24 bits put it within 1e-4; resizing in float leaves anything up to 0.5.
_ON_GRID = 0.01


@dataclass(frozen=True)
class Pixels:
    """An input that takes images as decoders give them.

    Attributes:
        dtype: `uint8`, or `int8` for pixel values minus 128.
        layout: Axes of the raw images.
        images: How the original's float input is made of them.
    """

    dtype: str
    layout: Layout
    images: ImageOptions

    @property
    def shift(self) -> int:
        """What is added to a raw value to get the pixel's."""
        return -INTEGERS[self.dtype][0]

    def to_float(self, raw: Array) -> Array:
        """Return the original's input, float32, for raw images."""
        last = raw if self.layout == "NHWC" else raw.transpose(0, 2, 3, 1)
        pixels = (last.astype(np.int16) + self.shift).astype(np.uint8)
        x = normalize(pixels, self.images)
        x = x if self.images.layout == "NHWC" else x.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(x)

    def to_raw(self, x: Array, *, nearest: bool = False) -> Array:
        """Return the raw images that the original's input was made of.

        Args:
            x: float32 [n, ...] in the original's layout.
            nearest: Take the nearest pixels where `x` was not made of any.

        Raises:
            DataError: `x` was not made of 8-bit pixels in the way that the recipe says.
        """
        options = self.images
        last = x if options.layout == "NHWC" else x.transpose(0, 2, 3, 1)
        exact = (last.astype(np.float64) * options.std + options.mean) / options.scale
        pixels = np.clip(np.rint(exact), 0, 255)
        off = float(np.abs(exact - pixels).max(initial=0.0))
        if not nearest and not off <= _ON_GRID:
            raise DataError(
                f"the data is not made of 8-bit pixels as [images] says (off by {off:.3g} of a step)",
                fix="pass a folder of images or uint8 arrays, "
                "or the mean, std and scale that made the data",
            )
        raw = (pixels - self.shift).astype(INTEGERS[self.dtype][2])
        raw = raw if self.layout == "NHWC" else raw.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(raw)

    def original(self, info: TensorInfo) -> TensorInfo:
        """Return the original's input in place of the one that takes pixels."""
        moved = info.shape
        if self.layout != self.images.layout:
            order = (0, 2, 3, 1) if self.layout == "NCHW" else (0, 3, 1, 2)
            moved = tuple(info.shape[axis] for axis in order)
        return TensorInfo(info.name, "float32", moved)

    @property
    def raw_images(self) -> ImageOptions:
        """The preprocessing that is left to do on image files."""
        return self.images.model_copy(
            update={"scale": 1.0, "mean": (0.0,), "std": (1.0,), "layout": self.layout}
        )

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest says."""
        images = self.images.model_dump(mode="json")
        return {"kind": "pixels", "dtype": self.dtype, "layout": self.layout, "images": images}

    def metadata(self) -> dict[str, str]:
        """Return what the model's metadata says; no size, as the shape does."""
        options = self.images
        numbers = {"scale": options.scale, "mean": options.mean, "std": options.std}
        texts = {"kind": "pixels", "layout": self.layout, "channels": options.channels}
        return texts | {key: json.dumps(number) for key, number in numbers.items()}


@dataclass(frozen=True, eq=False)
class Codes:
    """An input or output in integers: value = (code - zero point) * scale.

    Attributes:
        encoding: Scale and zero point, for the whole tensor.
    """

    encoding: Encoding

    def to_float(self, raw: Array) -> Array:
        """Return the values of codes."""
        return dequantize(raw, self.encoding)

    def to_raw(self, x: Array, *, nearest: bool = False) -> Array:
        """Return the codes of values."""
        return quantize(x, self.encoding)

    def original(self, info: TensorInfo) -> TensorInfo:
        """Return the original's input in place of the one that takes codes."""
        return replace(info, dtype="float32")

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest says."""
        return {"kind": "codes", **self._numbers()}

    def metadata(self) -> dict[str, str]:
        """Return what the model's metadata says; the scale has all digits of its float32."""
        numbers = self._numbers()
        return {"kind": "codes"} | {key: json.dumps(numbers[key]) for key in _NUMBERS}

    def _numbers(self) -> dict[str, Any]:
        found = self.encoding
        return {
            "dtype": found.dtype,
            "scale": float(found.scale),
            "zero_point": int(found.zero_point),
        }


_NUMBERS = ("scale", "zero_point")


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs that are no longer the original's.

    Attributes:
        inputs: By name; inputs that stay as they were are not in it.
        outputs: The same.
    """

    inputs: dict[str, Pixels | Codes] = field(default_factory=dict)
    outputs: dict[str, Codes] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything is not the original's."""
        return bool(self.inputs or self.outputs)

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any] | None) -> Self:
        """Read what the manifest says; None where nothing differs from the original.

        Raises:
            ArtifactError: It can't be understood.
        """
        try:
            sides = {
                side: {name: _entry(each) for name, each in entries.items()}
                for side, entries in (recorded or {}).items()
            }
            return cls(**sides)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"the manifest's `io` can't be understood ({error})", fix="compile it again"
            ) from error

    def raw(self, feeds: Mapping[str, Array], *, nearest: bool = False) -> Feeds:
        """Return the artifact's feeds for a sample meant for the original.

        Raises:
            DataError: An image that is not made of 8-bit pixels, unless `nearest`.
        """
        return {
            name: self.inputs[name].to_raw(x, nearest=nearest) if name in self.inputs else x
            for name, x in feeds.items()
        }

    def snapped(self, feeds: Mapping[str, Array]) -> Feeds:
        """Return the original's feeds with made-up images changed to ones of whole pixels."""
        snapped = dict(feeds)
        for name, each in self.inputs.items():
            if isinstance(each, Pixels):
                snapped[name] = each.to_float(each.to_raw(feeds[name], nearest=True))
        return snapped

    def values(self, results: Mapping[str, Array]) -> Feeds:
        """Return outputs in floats."""
        return {
            name: self.outputs[name].to_float(x) if name in self.outputs else x
            for name, x in results.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest says."""
        return {
            "inputs": {name: each.to_json() for name, each in self.inputs.items()},
            "outputs": {name: each.to_json() for name, each in self.outputs.items()},
        }

    def metadata(self) -> dict[str, str]:
        """Return entries `qgraph.input.NAME.scale` and so on for the model's metadata."""
        entries = [("input", name, each.metadata()) for name, each in self.inputs.items()]
        entries += [("output", name, each.metadata()) for name, each in self.outputs.items()]
        return {
            f"qgraph.{side}.{name}.{key}": text
            for side, name, texts in entries
            for key, text in texts.items()
        }


def raw_images(recorded: Mapping[str, Any] | None) -> ImageOptions | None:
    """Return how image files are prepared for an artifact that takes pixels, else None.

    Args:
        recorded: `Interface.to_json()`, as the manifest has it.
    """
    taken = Interface.from_json(recorded).inputs.values()
    return next((each.raw_images for each in taken if isinstance(each, Pixels)), None)


def _entry(recorded: Mapping[str, Any]) -> Any:
    """Return the `Pixels` or `Codes` that an entry of the manifest describes."""
    if recorded["kind"] == "pixels":
        images = ImageOptions.model_validate(recorded["images"])
        return Pixels(recorded["dtype"], recorded["layout"], images)
    scale, zero_point = np.float32(recorded["scale"]), np.int64(recorded["zero_point"])
    return Codes(Encoding(recorded["dtype"], np.asarray(scale), np.asarray(zero_point)))
