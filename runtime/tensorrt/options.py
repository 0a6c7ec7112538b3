"""What a build of a TensorRT engine takes: the [tensorrt] table of a recipe."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Shape = tuple[int, ...]
# Least, usual and greatest shape of one input.
Range = tuple[Shape, Shape, Shape]
# By input name.
Profile = Mapping[str, Range]

Capability = Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")]
_SHAPE = re.compile(r"\d+(x\d+)*|scalar")


class TensorRtOptions(BaseModel):
    """The `[tensorrt]` table: how the engine is built. `--set tensorrt.opt_level=5` sets one.

    Attributes:
        shapes: Shapes of inputs with dynamic axes; see `parse_profiles`. `--shapes` gives them.
        sm: Compute capabilities to build for, such as `8.6`; TensorRT-RTX only, whose default is
            all from 8.0 on. `--sm` gives them.
        workspace_mb: Most scratch memory a layer may take, MB; None for all of the GPU's.
        opt_level: 0 builds fastest, 5 searches longest; None for the library's 3.
        tf32: Multiply float32 with mantissas of 10 bits. Off, unlike the library's default: an
            fp32 engine then has float32's precision.
        sparse_weights: Use kernels for 2:4 sparse weights where weights are so.
        refit: Build an engine whose weights can be replaced; needs a GPU.
        weight_streaming: Build an engine that can keep part of its weights in host memory.
        version_compatible: Build an engine that later versions of the same library can load.
        hardware: `any-ampere` or `same-capability`: on which GPUs but this one it must run.
        timing_cache: Keep measured kernel times in the user's cache and use them again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shapes: tuple[str, ...] = ()
    sm: tuple[Capability, ...] = ()
    workspace_mb: Annotated[int, Field(ge=1)] | None = None
    opt_level: Annotated[int, Field(ge=0, le=5)] | None = None
    tf32: bool = False
    sparse_weights: bool = False
    refit: bool = False
    weight_streaming: bool = False
    version_compatible: bool = False
    hardware: Literal["this", "any-ampere", "same-capability"] = "this"
    timing_cache: bool = True

    @field_validator("shapes")
    @classmethod
    def _readable(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        parse_profiles(lines)
        return lines

    @property
    def profiles(self) -> list[Profile]:
        """The optimization profiles that `shapes` spells."""
        return parse_profiles(self.shapes)


def parse_profiles(lines: Sequence[str]) -> list[Profile]:
    """Read lines such as `x:1x3x224x224,8x3x224x224,32x3x224x224;mask:1x5,8x5,32x5`.

    An input's shapes are the least, the usual and the greatest, or one that is all three; `scalar`
    is the shape of a single number. Naming an input again begins the next profile.

    Raises:
        ValueError: A line can't be read, or a shape lies outside of the other two.
    """
    profiles: list[dict[str, Range]] = []
    for part in (part.strip() for line in lines for part in line.split(";")):
        name, colon, text = part.rpartition(":")
        if not colon or not name:
            raise ValueError(f"can't read shapes {part!r}: write name:1x3x8x8,4x3x8x8,8x3x8x8")
        if not profiles or name in profiles[-1]:
            profiles.append({})
        profiles[-1][name] = _range(name, text)
    return list(profiles)


def _range(name: str, text: str) -> Range:
    pieces = [piece.strip() for piece in text.split(",")]
    if len(pieces) not in (1, 3) or not all(map(_SHAPE.fullmatch, pieces)):
        raise ValueError(f"can't read shapes {text!r} of {name!r}: write one shape, or three")
    found = [
        () if piece == "scalar" else tuple(int(length) for length in piece.split("x"))
        for piece in pieces
    ]
    least, usual, greatest = found * 3 if len(found) == 1 else found
    ordered = len({len(each) for each in found}) == 1 and all(
        low <= mid <= high for low, mid, high in zip(least, usual, greatest, strict=True)
    )
    if not ordered:
        raise ValueError(f"shapes {text!r} of {name!r} are not least, usual, greatest")
    return least, usual, greatest


def spell(shape: Sequence[int]) -> str:
    """Return a shape as `--shapes` takes it."""
    return "x".join(map(str, shape)) or "scalar"
