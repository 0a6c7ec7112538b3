"""Recipes: what the user wants of a compile, as a small TOML file.

A recipe names the precision, how much data to use, how images become tensors, what to leave in
float, how well the artifact must answer, and options of passes. The fields of `Recipe` are the
keys of the file; `extends` names recipes to start from, whose tables are merged key by key.
"""

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qgraph.data.image_options import ImageOptions
from qgraph.errors import UsageError
from qgraph.recipe_files import find_recipe, named_recipes, toml_value, validated
from qgraph.runtime.cuda_ways import CudaSettings
from qgraph.runtime.tensorrt.options import TensorRtOptions

Precision = Literal[
    "fp32",
    "fp16",
    "bf16",
    "fp8",
    "int8",
    "int8-dynamic",
    "w8a16",
    "int8-weights",
    "int4",
    "int3",
    "int2",
]

Decibels = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]

# Tables of engines: what they set is no pass's option.
ENGINE_TABLES: dict[str, type[BaseModel]] = {"tensorrt": TensorRtOptions, "cuda": CudaSettings}
# The backends whose tables they are.
TABLE_OF: dict[str, str] = {"tensorrt": "tensorrt", "onnxruntime-cuda": "cuda"}


class VerifyOptions(BaseModel):
    """The `[verify]` table: how well the artifact must agree with the original.

    Attributes:
        min_sqnr_db: Lowest signal to quantization noise ratio of any output that is no KV cache,
            decibels, for every precision or in a table by precision, where `others` stands for
            those that it does not name; None for no floor.
        min_cosine: Lowest cosine similarity of any such output; None for no floor.
        held_out: Fraction (float) or number (int) of samples kept out of calibration for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_sqnr_db: Decibels | dict[Precision | Literal["others"], Decibels] | None = Field(
        default=None, description="a finite number, or a table of them by precision and 'others'"
    )
    min_cosine: Annotated[float, Field(ge=-1, le=1)] | None = None
    held_out: Count | Fraction = Field(
        default=0.2, description="a fraction between 0 and 1, or a number of samples of at least 1"
    )

    def sqnr_floor(self, precision: str) -> float | None:
        """Return `min_sqnr_db` of one precision."""
        floor = self.min_sqnr_db
        if not isinstance(floor, dict):
            return floor
        return next((floor[name] for name in floor if name == precision), floor.get("others"))


class Recipe(BaseModel):
    """What the user wants.

    Attributes:
        name: Name of the recipe; of a file, its stem unless it says otherwise.
        description: One line for `qgraph recipes`.
        precision: Number format of weights and activations.
        samples: The most data samples to use, those held out included; None for all.
        images: Preprocessing for a folder of images; None if the recipe takes none.
        exclude: Globs of node names and operators that stay in float.
        verify: Floors for the comparison with the original.
        tensorrt: How engines of `--target tensorrt` are built; None for the defaults.
        cuda: How `--target cuda` runs a model, where that is not to be measured.
        passes: Options by pass name, then by option name. Names are checked by the pipeline.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = "default"
    description: str = ""
    precision: Precision = "int8"
    samples: Count | None = None
    images: ImageOptions | None = None
    exclude: tuple[Name, ...] = ()
    verify: VerifyOptions = VerifyOptions()
    tensorrt: TensorRtOptions | None = None
    cuda: CudaSettings | None = None
    passes: dict[Name, dict[Name, Any]] = Field(default_factory=dict)

    def engine_options(self, backend: str) -> BaseModel | None:
        """Return the table of a backend; None for its defaults."""
        return getattr(self, TABLE_OF[backend]) if backend in TABLE_OF else None


def load_recipe(name_or_path: str | os.PathLike[str]) -> Recipe:
    """Load a recipe that ships with qgraph, by name, or a TOML file, by path.

    Anything that ends in `.toml` or holds a path separator is a path, everything else a name.

    Raises:
        UsageError: An unknown name (the nearest is suggested), a missing file, a syntax error
            (with its line), an unknown key, or a value of the wrong type or out of range.
    """
    where, data = find_recipe(name_or_path)
    return validated(Recipe, data, where)


def list_recipes() -> list[Recipe]:
    """Return the recipes that ship with qgraph, sorted by name."""
    return [load_recipe(name) for name in named_recipes()]


def with_settings(recipe: Recipe, settings: list[str]) -> Recipe:
    """Return the recipe with options set, as `--set pass.option=value` does.

    Args:
        recipe: The recipe, which stays as it is.
        settings: Texts such as `calibrate.observer=minmax`, or `tensorrt.opt_level=5` for a table
            of an engine. The value is read as TOML (a number, `true`, a quoted string, a list) and
            taken as a string where it isn't any.

    Raises:
        UsageError: No `=`, a left side that isn't `pass.option`, or a value that an engine's table
            does not take.
    """
    passes = {name: dict(options) for name, options in recipe.passes.items()}
    engines: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        names = [part.strip() for part in key.split(".")]
        if not equals or len(names) != 2 or not all(names):
            raise UsageError(
                f"can't read the setting {setting!r}",
                fix="write pass.option=value, such as calibrate.observer=minmax",
            )
        tables = engines if names[0] in ENGINE_TABLES else passes
        tables.setdefault(names[0], {})[names[1]] = toml_value(text.strip())
    update: dict[str, Any] = {"passes": passes}
    for name, values in engines.items():
        given: BaseModel | None = getattr(recipe, name)
        before = {} if given is None else given.model_dump(mode="json", exclude_unset=True)
        update[name] = validated(ENGINE_TABLES[name], before | values, f"--set {name}")
    return recipe.model_copy(update=update)
