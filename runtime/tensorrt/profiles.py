"""Optimization profiles: which shapes an engine takes."""

from collections.abc import Mapping, Sequence
from typing import Any

from qgraph.errors import EngineError, unknown_name
from qgraph.runtime.backend import format_shape
from qgraph.runtime.tensorrt.options import Profile, spell

_WHERE = "tensorrt"


def profiles_for(
    network: Any, wanted: Sequence[Profile], defaults: Mapping[str, Sequence[int]]
) -> list[Profile]:
    """Return the profiles to build; none where no input has a dynamic axis.

    Args:
        network: The library's network definition.
        wanted: Profiles that the user named; each must have every input with dynamic axes.
        defaults: By input name, the one shape to build for where the user named none.

    Raises:
        EngineError: An input's shape is missing or does not fit, or an input is a shape itself.
        UsageError: There is no such input.
    """
    inputs = {each.name: each for each in map(network.get_input, range(network.num_inputs))}
    for name, each in inputs.items():
        if each.is_shape_tensor:
            raise EngineError(
                f"input {name!r} decides shapes, which engines built here do not take",
                where=_WHERE,
                fix="make it a constant of the model",
            )
    for name in (name for profile in wanted for name in profile):
        if name not in inputs:
            raise unknown_name("input", name, inputs)
    dynamic = {name: tuple(each.shape) for name, each in inputs.items() if -1 in tuple(each.shape)}
    found = list(wanted) or [_fixed(dynamic, defaults)]
    for profile in found:
        for name, shape in dynamic.items():
            if name not in profile:
                raise _misfit(name, shape, None)
        for name, ranges in profile.items():
            for shape in ranges:
                if not _fits(tuple(inputs[name].shape), shape):
                    raise _misfit(name, tuple(inputs[name].shape), shape)
    return found if dynamic else []


def add_profiles(builder: Any, config: Any, network: Any, profiles: Sequence[Profile]) -> None:
    """Give the profiles to a build.

    Raises:
        EngineError: The library does not take one.
    """
    for number, profile in enumerate(profiles):
        added = builder.create_optimization_profile()
        for name, (least, usual, greatest) in profile.items():
            added.set_shape(name, least, usual, greatest)
        if config.add_optimization_profile(added) < 0:
            raise EngineError(f"profile {number} is refused", where=_WHERE, fix="check --shapes")


def _fixed(
    dynamic: Mapping[str, tuple[int, ...]], defaults: Mapping[str, Sequence[int]]
) -> Profile:
    shapes = {name: tuple(defaults.get(name, shape)) for name, shape in dynamic.items()}
    return {name: (shape, shape, shape) for name, shape in shapes.items()}


def _fits(wanted: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        length >= 0 and want in (-1, length) for length, want in zip(shape, wanted, strict=True)
    )


def _misfit(name: str, wanted: tuple[int, ...], shape: tuple[int, ...] | None) -> EngineError:
    text = format_shape([None if length < 0 else length for length in wanted])
    what = "has no shape to be built for" if shape is None else f"can't be {spell(shape)}"
    return EngineError(
        f"input {name!r} {text} {what}",
        where=_WHERE,
        fix="give one for every input with dynamic axes, such as --shapes 'x:1x3x8x8,4x3x8x8,8x3x8x8'",
    )
