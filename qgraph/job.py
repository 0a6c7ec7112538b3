"""What one compile was asked for: names looked up, options checked, before anything runs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from qgraph import flow
from qgraph.errors import UsageError, unknown_name
from qgraph.interface import InputType, OutputType
from qgraph.listener import Listener, Silent
from qgraph.recipe import ENGINE_TABLES, TABLE_OF, Recipe, load_recipe, with_settings
from qgraph.recipe_files import named_recipes
from qgraph.target import PRECISIONS, WEIGHT_ONLY, Target
from qgraph.target import target as named_target


@dataclass
class Job:
    """One compile, resolved: names looked up, options checked."""

    target: Target
    recipe: Recipe
    requested: str
    precision: str
    exclude: tuple[str, ...]
    listener: Listener
    warnings: list[str]

    @property
    def batch(self) -> int | None:
        """Rows that the model will run on at a time, where the user says so."""
        batch: int | None = self.recipe.passes.get("weight_only", {}).get("batch")
        return batch

    def warn(self, line: str) -> None:
        """Keep a warning for the manifest and tell it, once."""
        if line not in self.warnings:
            self.warnings.append(line)
            self.listener.warn(line)


def resolve(
    target: str,
    precision: str | None,
    recipe: str | os.PathLike[str] | Recipe | None,
    exclude: Sequence[str],
    settings: Sequence[str],
    listener: Listener | None,
    io: str | None = None,
    io_outputs: str | None = None,
    *,
    force: bool = False,
    searching: bool = False,
) -> Job:
    """Look up every name and check every option.

    Warns of a precision that the target builds as another one, before anything else.

    A search finds out itself what is slow: it keeps the precision that it was asked for.

    Raises:
        UsageError: Something is unknown, or the target has no such precision.
    """
    hardware = named_target(target)
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe or "default")
    wanted = precision or _of_recipe(loaded) or hardware.default_precision
    if recipe is None or recipe in named_recipes():
        # What was measured for the target goes before what was measured for all.
        own = hardware.settings.get(wanted, ())
        loaded = with_settings(loaded, list(own))
    loaded = with_settings(loaded, list(settings))
    _check_engine_settings(settings, hardware)
    loaded = _with_io(loaded, io, io_outputs)
    flow.check_options(loaded.passes)
    if wanted not in hardware.precisions:
        if wanted in PRECISIONS:
            why = hardware.refused.get(wanted)
            raise UsageError(
                f"target {hardware.name!r} has no {wanted}" + (f": {why}" if why else ""),
                fix=f"choose one of: {', '.join(hardware.precisions)}",
            )
        raise unknown_name("precision", wanted, hardware.precisions)
    _check_bits(loaded, wanted)
    globs = (*loaded.exclude, *exclude)
    job = Job(hardware, loaded, wanted, wanted, globs, listener or Silent(), [])
    if wanted in hardware.instead and not searching:
        _substitute(job, force)
    return job


def _substitute(job: Job, force: bool) -> None:
    """Say that a precision is a bad choice for the target, and take the better one unless forced."""
    wanted, hardware = job.requested, job.target
    better = hardware.instead[wanted]
    if job.batch is not None:
        better = hardware.instead_batch.get(wanted, better)
    line = f"{wanted} is slow on {hardware.name}: {hardware.refused[wanted]}"
    if force:
        job.warn(f"{line}; done all the same")
        return
    job.warn(f"{line}; built {better} instead (--force builds {wanted})")
    job.precision = better
    plain = job.recipe.model_copy(update={"passes": {}})
    suited = with_settings(plain, list(hardware.settings.get(better, ()))).passes
    for name, options in suited.items():
        job.recipe.passes[name] = {**options, **job.recipe.passes.get(name, {})}


def _check_bits(recipe: Recipe, precision: str) -> None:
    """Refuse another number of bits than the precision has, which would be passed over."""
    bits = recipe.passes.get("weight_only", {}).get("bits")
    if bits is not None and bits != WEIGHT_ONLY.get(precision, bits):
        raise UsageError(
            f"weight_only.bits={bits} is not {precision}", fix=f"pass --bits {bits} in its place"
        )


def _check_engine_settings(settings: Sequence[str], hardware: Target) -> None:
    """Refuse settings of an engine that the target has not."""
    tables = {TABLE_OF[engine] for engine in hardware.engines if engine in TABLE_OF}
    for name in (setting.partition(".")[0].strip() for setting in settings):
        if name in ENGINE_TABLES and name not in tables:
            raise UsageError(
                f"target {hardware.name!r} has no {name} engine, which {name}.* and its options "
                "are for",
                fix=f"choose a target that does, such as --target {name}",
            )


def _of_recipe(recipe: Recipe) -> str | None:
    """Return the precision that a recipe asks for; None where it leaves that to the target."""
    return recipe.precision if "precision" in recipe.model_fields_set else None


def _with_io(recipe: Recipe, inputs: str | None, outputs: str | None) -> Recipe:
    """Set the types of inputs and outputs, as `--set quantize_io.inputs=...` does."""
    settings = []
    for option, key, value in (("io", "inputs", inputs), ("io-outputs", "outputs", outputs)):
        choices = get_args(InputType if key == "inputs" else OutputType)
        if value is None:
            continue
        if value not in choices:
            raise unknown_name(f"--{option}", value, choices)
        settings.append(f"quantize_io.{key}={value}")
    return with_settings(recipe, settings)


def output_folder(model: Any, output: str | os.PathLike[str] | None, job: Job) -> Path:
    """Return the artifact's folder: as given, or `<model>.<precision>` in the current one."""
    if output is not None:
        return Path(output)
    if not isinstance(model, str | os.PathLike):
        raise UsageError("a model that is no file needs an output folder", fix="pass output=")
    return Path(f"{Path(model).stem}.{job.requested}")
