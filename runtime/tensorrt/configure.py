"""Puts options into a build, and says which of them the installed library lacks."""

from collections.abc import Sequence
from typing import Any

from qgraph.errors import EngineError
from qgraph.runtime.tensorrt.device import device
from qgraph.runtime.tensorrt.library import Library
from qgraph.runtime.tensorrt.options import TensorRtOptions

_HARDWARE = {"any-ampere": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}


def capabilities(library: Library, options: TensorRtOptions, target: str) -> tuple[str, ...]:
    """Return the compute capabilities to build for by name; empty for the library's default.

    Args:
        library: The library.
        options: What the user named goes first.
        target: The capability that the target names, taken where the library has it.
    """
    named = tuple(dict.fromkeys(options.sm))
    return named or ((target,) if target in library.capabilities else ())


def configure(
    library: Library, config: Any, options: TensorRtOptions, chosen: Sequence[str]
) -> None:
    """Put every option into a build's configuration.

    Raises:
        EngineError: The installed library lacks what an option asks for.
    """
    trt = library.module
    constants = [library.capability(name) for name in chosen]
    if constants:
        config.num_compute_capabilities = len(constants)
        for index, constant in enumerate(constants):
            if not config.set_compute_capability(constant, index):
                raise _lacks(library, "sm", chosen[index])
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.opt_level is not None:
        config.builder_optimization_level = options.opt_level
    if options.hardware != "this":
        level = _member(
            library, "hardware", "HardwareCompatibilityLevel", _HARDWARE[options.hardware]
        )
        config.hardware_compatibility_level = level
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.refit and not library.times_kernels and device() is None:
        raise EngineError(
            f"{library.title} builds engines for refit only where there is a GPU",
            where="tensorrt.refit",
            fix="build it on the machine that will run it",
        )
    for name, flags in (
        ("sparse_weights", ("SPARSE_WEIGHTS",)),
        ("refit", ("REFIT",)),
        ("weight_streaming", ("WEIGHT_STREAMING",)),
        # Without it the plan would carry code of the library that is executed when it is loaded.
        ("version_compatible", ("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME")),
    ):
        wanted = flags if getattr(options, name) else ()
        for flag in [_member(library, name, "BuilderFlag", each) for each in wanted]:
            config.set_flag(flag)
    # Without layers' names nothing can be said about an engine; it costs a few kilobytes.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _member(library: Library, option: str, kind: str, name: str) -> Any:
    found = getattr(getattr(library.module, kind, None), name, None)
    if found is None:
        raise _lacks(library, option, name)
    return found


def _lacks(library: Library, option: str, name: str) -> EngineError:
    return EngineError(
        f"{library} has no {name}", where=f"tensorrt.{option}", fix="leave the option out"
    )
