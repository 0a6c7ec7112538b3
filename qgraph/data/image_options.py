"""How images become tensors: the `[images]` table of a recipe."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Size = Annotated[int, Field(ge=1, le=16384)]
Extent = Size | tuple[Size, Size]
Number = Annotated[float, Field(allow_inf_nan=False)]
_SIZE = "or [height, width], pixels from 1 to 16384"


class ImageOptions(BaseModel):
    """Preprocessing, in this order: channels, resize, crop, `(pixel * scale - mean) / std`, layout.

    Attributes:
        resize: Length of the shorter side, pixels, or [height, width]; None keeps the size.
        crop: Size of the square cut from the centre, pixels, or [height, width].
        interpolation: Filter of the resizing; all but `nearest` average when they shrink.
        scale: Factor for the pixel values 0 to 255.
        mean: Subtracted after scaling; one value, or one for each channel.
        std: Divisor after that; one value, or one for each channel.
        layout: Axes of the tensor, N being the batch.
        channels: Order of the channels, or `gray` for a single one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: Extent | None = Field(default=None, description=f"the shorter side {_SIZE}")
    crop: Extent | None = Field(default=None, description=f"the side of a square {_SIZE}")
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    scale: Number = 1 / 255
    mean: tuple[Number, ...] = (0.0,)
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR", "gray"] = "RGB"

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        count = 1 if self.channels == "gray" else 3
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, count):
                raise ValueError(f"{name} needs 1 or {count} values for channels {self.channels!r}")
        return self

    @property
    def raw(self) -> bool:
        """Whether pixel values stay as they are, as models with uint8 inputs want."""
        return self.scale == 1 and not any(self.mean) and all(s == 1 for s in self.std)
