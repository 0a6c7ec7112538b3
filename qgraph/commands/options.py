"""Options that several commands have, so that they are spelled and explained once."""

import json
from dataclasses import dataclass
from typing import Annotated

import typer

# Passes with a memory budget of their own for observed values.
OBSERVING = ("calibrate", "adaround", "weight_only")


@dataclass
class Shared:
    """Options that work before and after the command's name; one object a run.

    Attributes:
        verbose: How often `-v` was given; two show tracebacks.
        quiet: Print no progress, notes and summaries: only results, warnings and errors.
        json: Print one JSON document on stdout and nothing else there.
    """

    verbose: int = 0
    quiet: bool = False
    json: bool = False

    def add(self, verbose: int, quiet: bool, json: bool = False) -> None:
        """Take in what was given in one of the two places."""
        self.verbose += verbose
        self.quiet |= quiet
        self.json |= json


Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        metavar="",
        show_default=False,
        help="Show more; -v -v shows tracebacks.",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", metavar="", help="Print results, warnings and errors only.")
]
Json = Annotated[
    bool, typer.Option("--json", metavar="", help="Print one JSON document on stdout.")
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL|ARTIFACT", help="An ONNX file, or a folder from `compile`.")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="D",
        help="Samples: .npz, .npy, a folder of images or arrays, package.module:function, random.",
    ),
]
EncodingsFile = Annotated[
    str | None,
    typer.Option(
        "--encodings",
        metavar="FILE.json",
        help="Take encodings from this file of qgraph's, AIMET's or onnxruntime's; only tensors "
        "that it does not name are calibrated.",
    ),
]
Samples = Annotated[
    int | None, typer.Option("--samples", min=1, metavar="N", help="Use at most N samples.")
]


def complete_target(incomplete: str) -> list[str]:
    """Complete `--target`."""
    from qgraph.target import targets

    return [name for name in targets() if name.startswith(incomplete)]


def complete_precision(incomplete: str) -> list[str]:
    """Complete `--precision`."""
    from qgraph.target import PRECISIONS

    return [name for name in PRECISIONS if name.startswith(incomplete)]


def complete_pass(incomplete: str) -> list[str]:
    """Complete the name of a pass."""
    from qgraph.passes import all_passes

    return [name for name in all_passes() if name.startswith(incomplete)]


def complete_engine(incomplete: str) -> list[str]:
    """Complete `--engine`."""
    from qgraph.runtime import backends

    return [name for name in backends() if name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Complete `--recipe` by the names of built-in recipes."""
    from qgraph.recipe_files import named_recipes

    return [name for name in named_recipes() if name.startswith(incomplete)]


Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="MB",
        min=1,
        show_default=False,
        help="Memory for observed values, beside the model; default 1024. Less makes more runs.",
    ),
]


Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        show_default=False,
        help="Calibrate in so many processes; ranges are the same to the bit.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Calibrate on this Ray cluster: HOST:PORT, auto, or local to start one here.",
    ),
]


def with_memory(settings: list[str] | None, memory: int | None) -> list[str]:
    """Return the settings with a memory budget for every pass that observes values."""
    budget = [] if memory is None else [f"{name}.memory_mb={memory}" for name in OBSERVING]
    return [*budget, *(settings or [])]


Bits = Annotated[
    int | None,
    typer.Option(
        "--bits",
        metavar="2|3|4|8",
        show_default=False,
        help="Weights in so many bits, activations in float: short for --precision int4 and its kin.",
    ),
]
Group = Annotated[
    int | None,
    typer.Option(
        "--group",
        metavar="N",
        min=0,
        show_default=False,
        help="Weights of a column that share a scale, for weights in few bits; 0: whole columns. "
        "Default 128.",
    ),
]
Symmetric = Annotated[
    bool | None,
    typer.Option(
        "--symmetric/--asymmetric",
        show_default=False,
        help="Zero points of weights in few bits in the middle, or where they are best; default: "
        "as the target likes.",
    ),
]

Batch = Annotated[
    int | None,
    typer.Option(
        "--batch",
        metavar="N",
        min=1,
        show_default=False,
        help="Rows that a layer will multiply at a time: engines are timed on so many, and where the "
        "target's measured times say that weights in few bits, or fp8, are slower there, the layer "
        "stays in float.",
    ),
]


def with_weights(
    settings: list[str],
    precision: str | None,
    bits: int | None,
    group: int | None,
    symmetric: bool | None,
    batch: int | None,
) -> tuple[list[str], str | None]:
    """Return settings and precision with the options of weights in few bits put into them.

    Raises:
        UsageError: There is no such width, or the precision is another one.
    """
    given = {"group": group, "symmetric": symmetric, "batch": batch}
    own = [f"weight_only.{k}={str(v).lower()}" for k, v in given.items() if v is not None]
    own += [] if batch is None else [f"fp8.batch={batch}"]
    if bits is None:
        return [*own, *settings], precision
    from qgraph.errors import UsageError
    from qgraph.target import WEIGHT_ONLY

    named = next((name for name, width in WEIGHT_ONLY.items() if width == bits), None)
    if named is None:
        widths = ", ".join(str(width) for width in sorted(WEIGHT_ONLY.values()))
        raise UsageError(f"there are no weights of {bits} bits", fix=f"use one of {widths}")
    if precision not in (None, named):
        raise UsageError(f"--bits {bits} is {named}, not {precision}", fix="give one of the two")
    return [*own, *settings], named


EngineOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="Option of the engine, such as graph=true, nhwc=true or tf32=true of onnxruntime-cuda; "
        "repeatable.",
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="FILE|NAME",
        help="A TOML file, or a name from `qgraph recipes`.",
        autocompletion=complete_recipe,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="GLOB", help="Nodes or operators that stay in float; repeatable."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PASS.OPTION=VALUE", help="Set an option of a pass; repeatable."),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shapes",
        metavar="'X:MIN,OPT,MAX'",
        show_default=False,
        help="Shapes that an engine is built for, such as 'x:1x3x224x224,8x3x224x224,32x3x224x224'; "
        "inputs apart by ';'. Repeatable; an input named again begins another profile. Default: "
        "the shape of the data.",
    ),
]
Sm = Annotated[
    list[str] | None,
    typer.Option(
        "--sm",
        metavar="X.Y",
        show_default=False,
        help="Compute capability that a TensorRT-RTX engine is built for; repeatable.",
    ),
]


def with_engine(
    settings: list[str], shapes: list[str] | None, capabilities: list[str] | None
) -> list[str]:
    """Return the settings with what an engine is built for put into them."""
    given = {"shapes": shapes, "sm": capabilities}
    own = [f"tensorrt.{name}={json.dumps(values)}" for name, values in given.items() if values]
    return [*settings, *own]
