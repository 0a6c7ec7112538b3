"""Ways to run a model in ONNX Runtime's CUDA provider, and what a recipe fixes of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from qgraph.errors import UsageError

ConvSearch = Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"]

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
# Operators that the provider has for channels last, too.
_WITH_LAYOUT = _CONVOLUTIONS | {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"}
# With channels last, onnxruntime-gpu 1.31.1 hands this one a wrong number of tokens: on an H100 a
# cache came out one token short, without an error.
_BROKEN_BY_NHWC = frozenset({"GroupQueryAttention"})


@dataclass(frozen=True)
class CudaOptions:
    """What the CUDA provider can be told.

    Attributes:
        graph: Capture a CUDA graph for a shape that comes again, and replay it; see
            `qgraph.runtime.ort_graphs`. Not while profiling, since a graph hides its kernels.
        nhwc: Convolutions with channels last.
        fuse_conv_bias: Convolutions add their bias themselves, where cuDNN has such kernels.
        tf32: Multiply float32 with ten bits of mantissa.
        conv_search: How algorithms of convolutions are found: by cuDNN's rules, by trying all at
            the first run of a shape, or the default one.
    """

    graph: bool = False
    nhwc: bool = False
    fuse_conv_bias: bool = False
    tf32: bool = False
    conv_search: ConvSearch = "HEURISTIC"

    def provider_options(self, *, graph: bool) -> dict[str, str]:
        """Return the provider's options as ONNX Runtime takes them."""
        return {
            "use_tf32": str(int(self.tf32)),
            "prefer_nhwc": str(int(self.nhwc)),
            "fuse_conv_bias": str(int(self.fuse_conv_bias)),
            "cudnn_conv_algo_search": self.conv_search,
            "enable_cuda_graph": str(int(graph)),
        }

    def changed(self) -> dict[str, Any]:
        """Return what is not the default, by name."""
        plain = CudaOptions()
        return {key: value for key, value in vars(self).items() if value != getattr(plain, key)}


class CudaSettings(BaseModel):
    """The `[cuda]` table: what is decided of how the CUDA provider runs a model.

    `--set cuda.nhwc=true` sets one. What is None is measured.

    Attributes:
        graph: Whether CUDA graphs are captured and replayed.
        nhwc: Whether convolutions run with channels last.
        fuse_conv_bias: Whether convolutions add their bias themselves.
        tf32: Multiply float32 with ten bits of mantissa. Off, unlike ONNX Runtime's default: an
            fp32 model then has float32's precision.
        conv_search: How cuDNN's algorithms are found; None: all are tried under CUDA graphs, which
            are recorded once, else cuDNN's rules.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    graph: bool | None = None
    nhwc: bool | None = None
    fuse_conv_bias: bool | None = None
    tf32: bool = False
    conv_search: ConvSearch | None = None


def ways(operators: Collection[str], settings: CudaSettings) -> Mapping[str, CudaOptions]:
    """Return the ways that are worth measuring for a model, by a label; the plainest first.

    Layouts are tried where an operator knows them, and with channels last biases inside of
    convolutions: on an H100 in fp16 with CUDA graphs that took 0.84 to 0.46 of MobileNetV2's time,
    but 1.2 to 1.3 of ResNet-50's. A graph is recorded for one shape and used often, so cuDNN's
    algorithms are tried one by one for it.

    Args:
        operators: Names of the model's operators.
        settings: What is decided already.

    Raises:
        UsageError: Channels last are asked for where they make onnxruntime err.
    """
    if broken := sorted(_BROKEN_BY_NHWC.intersection(operators)):
        if settings.nhwc:
            raise UsageError(
                f"cuda.nhwc=true makes ONNX Runtime compute {broken[0]} wrongly",
                fix="leave cuda.nhwc out",
            )
        settings = settings.model_copy(update={"nhwc": False})
    layouts = _choices(settings.nhwc, not _WITH_LAYOUT.isdisjoint(operators))
    biases = _choices(settings.fuse_conv_bias, not _CONVOLUTIONS.isdisjoint(operators))
    found: dict[str, CudaOptions] = {}
    for bias, graph, nhwc in product(biases, _choices(settings.graph, True), layouts):
        if bias and not nhwc and settings.fuse_conv_bias is None:
            continue
        search: ConvSearch = settings.conv_search or ("EXHAUSTIVE" if graph else "HEURISTIC")
        way = CudaOptions(graph, nhwc, bias, settings.tf32, search)
        named = {"nhwc": nhwc, "graph": graph, "fused bias": bias}
        found[", ".join(name for name, on in named.items() if on)] = way
    return found


def _choices(decided: bool | None, useful: bool) -> tuple[bool, ...]:
    """Return what to try of an option."""
    if decided is not None:
        return (decided,)
    return (False, True) if useful else (False,)
