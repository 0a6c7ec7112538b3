"""TensorRT and TensorRT-RTX: one Python API under two names, and everywhere they differ.

| | TensorRT 10 and 11 | TensorRT-RTX |
|---|---|---|
| builds for | the GPU in the machine | named compute capabilities, no GPU needed |
| times kernels while building | yes, the timing cache keeps it | no, the timing cache is a no-op |
| refittable engines without a GPU | no | no |
"""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from qgraph.errors import EngineError

# Tried in this order.
MODULES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_INSTALL = "run `pip install 'qgraph[tensorrt]'`, or install TensorRT from NVIDIA"


@dataclass(frozen=True)
class Library:
    """The library that is installed.

    Attributes:
        module: Its Python module.
        title: Its name for people.
        capabilities: Compute capabilities, such as `8.6`, that it builds for by name; empty where
            it builds for the GPU in the machine.
    """

    module: ModuleType
    title: str
    capabilities: tuple[str, ...]

    @property
    def version(self) -> str:
        """Its version."""
        return str(self.module.__version__)

    @property
    def times_kernels(self) -> bool:
        """Whether building measures kernels on the GPU, so that a timing cache saves time."""
        return not self.capabilities

    def __str__(self) -> str:
        """Return name and version."""
        return f"{self.title} {self.version}"

    def network_flags(self) -> int:
        """Return the bits of a strongly typed network, which newer versions build unasked."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def capability(self, name: str) -> Any:
        """Return the library's constant of a compute capability.

        Raises:
            EngineError: It does not build for that one, or chooses none by name.
        """
        if not self.capabilities:
            raise EngineError(
                f"{self.title} builds for the GPU in the machine only",
                where="--sm",
                fix="leave --sm out, or use TensorRT-RTX",
            )
        if name not in self.capabilities:
            raise EngineError(
                f"{self} does not build for compute capability {name}",
                where="--sm",
                fix=f"choose among {', '.join(self.capabilities)}",
            )
        return getattr(self.module.ComputeCapability, f"SM{name.replace('.', '')}")

    def logger(self) -> Any:
        """Return a logger that keeps errors in `errors` and prints nothing."""
        trt = self.module
        kept = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity in kept:
                    self.errors.append(message)

        return Logger()


def load_library() -> Library:
    """Import the library.

    Raises:
        EngineError: None can be imported.
    """
    found = []
    for name, title in MODULES.items():
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # a shared library may be missing
            found.append(f"{title}: {error}")
        else:
            return Library(module, title, _capabilities(module))
    raise EngineError(f"can't be imported ({'; '.join(found)})", where="tensorrt", fix=_INSTALL)


def _capabilities(module: ModuleType) -> tuple[str, ...]:
    """Names such as SM86 as 8.6."""
    kinds = getattr(module, "ComputeCapability", None)
    digits = [name[2:] for name in getattr(kinds, "__members__", ()) if name.startswith("SM")]
    return tuple(f"{each[:-1]}.{each[-1]}" for each in digits)
