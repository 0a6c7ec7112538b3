"""`qgraph recipes`: what ships with qgraph for `--recipe`."""

from typing import Annotated

import typer

from qgraph.commands.options import Json, Quiet, Verbose, complete_recipe
from qgraph.commands.output import Output

EXAMPLES = """[bold]Examples[/bold]

qgraph recipes

qgraph recipes default  [dim]# every key and its value[/dim]

qgraph compile model.onnx --recipe my.toml --data D"""


def command(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME|FILE]", help="Show this one in full.", autocompletion=complete_recipe
        ),
    ] = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """List the built-in recipes, or show one, or check a file of your own."""
    import json

    from qgraph import report
    from qgraph.recipe import list_recipes, load_recipe

    out = Output.begin(ctx, verbose, quiet, as_json)
    if name is not None:
        found = load_recipe(name).model_dump(mode="json")
        out.emit(found, report.facts((key, json.dumps(value)) for key, value in found.items()))
        return
    listed = [each.model_dump(mode="json") for each in list_recipes()]
    rows = [(each["name"], each["precision"], each["description"]) for each in listed]
    out.emit(listed, report.table(("recipe", "precision", "what it is for"), rows))
