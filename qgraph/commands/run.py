"""`qgraph run`: outputs of a model or artifact on data."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.commands.options import (
    Data,
    EngineOption,
    Json,
    Model,
    Quiet,
    Samples,
    Verbose,
    complete_engine,
    complete_recipe,
)
from qgraph.commands.output import Output
from qgraph.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = """[bold]Examples[/bold]

qgraph run model.int8 --data test.npz -o outputs.npz

qgraph run model.onnx --data images/ --recipe imagenet-half --samples 8

qgraph run model.onnx --data random:width=320"""


def command(
    ctx: typer.Context,
    model: Model,
    data: Data = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="OUT.npz", help="Write all outputs there."),
    ] = None,
    samples: Samples = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Recipe that says how images are prepared; default: the artifact's.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Engine; default: the artifact's, or onnxruntime-cpu.",
            autocompletion=complete_engine,
        ),
    ] = None,
    option: EngineOption = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a model or artifact on data and show or write its outputs.

    In OUT.npz each output is one array, the samples' results one behind the other along the first
    axis. Outputs whose shape differs from sample to sample are written one by one, as NAME/0, ...
    """
    from qgraph import report, text
    from qgraph.commands.npz import write_npz
    from qgraph.commands.opening import data_for
    from qgraph.runnable import runnable
    from qgraph.runtime.options import read_options

    out = Output.begin(ctx, verbose, quiet, as_json)
    if data is None:
        raise UsageError("run needs data", fix="pass --data D, or --data random")
    chosen = runnable(model, engine, own=read_options(option or []))
    results: list[dict[str, np.ndarray[Any, Any]]] = []
    with chosen.open() as session:
        for feeds in data_for(session, data, samples, recipe, chosen):
            results.append(session.run(feeds))
        name = session.engine
    arrays = join(results)
    if output is not None:
        write_npz(output, arrays)
    found: dict[str, Any] = {
        "model": model,
        "engine": name,
        "samples": len(results),
        "outputs": [summary(key, array) for key, array in arrays.items()],
        "file": output,
    }
    rows = [
        (each["name"], each["dtype"], text.shape(each["shape"]))
        + tuple(report.number(each[key]) for key in ("min", "mean", "max"))
        + (" ".join(report.number(v) for v in each["first"]),)
        for each in found["outputs"]
    ]
    columns = ("output", "type", "shape", "min", "mean", "max", "first values")
    head = f"{text.counted(len(results), 'sample')} in {name}"
    written = [f"written to {output}"] if output else []
    out.emit(found, head, report.table(columns, rows, right="min mean max"), *written)


def join(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the samples' outputs together along the first axis, where their shapes allow it."""
    import numpy as np

    from qgraph.errors import DataError

    joined: dict[str, Any] = {}
    for name in results[0] if results else ():
        arrays = [result[name] for result in results]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise DataError("is a sequence, which can't be shown", where=f"output {name!r}")
        if arrays[0].ndim and len({(array.dtype, array.shape[1:]) for array in arrays}) == 1:
            joined[name] = np.concatenate(arrays)
        elif len({array.shape for array in arrays}) == 1:
            joined[name] = np.stack(arrays)
        else:
            joined |= {f"{name}/{index}": array for index, array in enumerate(arrays)}
    return joined


def summary(name: str, array: "np.ndarray[Any, Any]") -> dict[str, Any]:
    """Describe one output: name, dtype, shape, smallest, mean, largest and first values."""
    import numpy as np

    found = {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
    low = mean = high = None
    first = [str(value) for value in array.reshape(-1)[:4]]
    if array.dtype != object and array.dtype.kind not in "USc" and array.size:
        wide = array.astype(np.float64)
        low, mean, high = float(wide.min()), float(wide.mean()), float(wide.max())
        first = wide.reshape(-1)[:4].tolist()
    return found | {"min": low, "mean": mean, "max": high, "first": first}
