"""The form of a device file."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Number = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8", "w8a16"]
Codes = Literal["fp8", "int8", "w8a16", "int4-weights", "int8-weights"]
_Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Shape = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=16)]


class Measured(BaseModel):
    """One kernel that was timed: it goes before the estimate.

    Attributes:
        backend: What ran it.
        op: Operator.
        precision: What it computed in: `fp32`, `int8`, `int4-weights`, ...
        inputs: Shapes of its data and its weight, as the model has them.
        output: Shape of its result.
        ms: Milliseconds of a run, its start included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: _Name
    op: _Name
    precision: _Name
    inputs: tuple[_Shape, ...]
    output: _Shape
    ms: _Above0


class Rates(BaseModel):
    """How one backend uses the device.

    Attributes:
        runs: By the type that a model's products are in, the peak that its kernels could reach; a
            type that is missing is not run.
        codes: In which codes it multiplies. Of others QuantizeLinear and DequantizeLinear are
            kernels of their own, and the product runs in floats.
        fused: Operators that run in the kernel of the convolution or product in front of them.
        efficiency: Share of the bound that kernels reach, above 0 and at most 1.
        launch_us: What each kernel takes beside that, microseconds.
        products: Tables of measured products, which go before estimates; see `qgraph.costs`.
        source: Where the numbers come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: dict[Number, Number] = Field(min_length=1)
    codes: tuple[Codes, ...] = ()
    fused: tuple[_Name, ...] = ()
    efficiency: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    launch_us: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    products: tuple[_Name, ...] = ()
    source: str = ""


class Device(BaseModel):
    """Peaks of a device, and how backends use them.

    Attributes:
        name: Its name.
        source: Where the peaks come from.
        bandwidth_gb_s: Of its memory, 10^9 bytes a second.
        tflops: By number format, 10^12 operations a second, dense; a multiplication and an
            addition are two.
        backends: By name, how each uses it.
        measured: Kernels that were timed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _Name
    source: str = ""
    bandwidth_gb_s: _Above0
    tflops: dict[Number, _Above0] = Field(min_length=1)
    backends: dict[_Name, Rates] = Field(min_length=1)
    measured: Annotated[tuple[Measured, ...], Field(max_length=10_000)] = ()

    @model_validator(mode="after")
    def _complete(self) -> "Device":
        for name, rates in self.backends.items():
            missing = sorted(set(rates.runs.values()) - self.tflops.keys())
            if missing:
                raise ValueError(f"backend {name} runs at the peak of {missing[0]}: give tflops.{missing[0]}")  # fmt: skip
        return self
