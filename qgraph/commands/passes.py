"""`qgraph passes`: the passes, their options and their documentation."""

import dataclasses
import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.commands.options import Json, Quiet, Verbose, complete_pass
from qgraph.commands.output import Output

if TYPE_CHECKING:
    from qgraph.pipeline import Pass

EXAMPLES = """[bold]Examples[/bold]

qgraph passes

qgraph passes calibrate  [dim]# what it does, and its options[/dim]

qgraph compile model.onnx --data D --set calibrate.observer=minmax"""


def command(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Show this one in full.", autocompletion=complete_pass
        ),
    ] = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """List the passes with their options, or show the documentation of one."""
    from qgraph import report
    from qgraph.passes import all_passes, pass_class

    out = Output.begin(ctx, verbose, quiet, as_json)
    if name is not None:
        found = describe(pass_class(name))
        out.emit(found, _page(found))
        return
    listed = [describe(each) for each in all_passes().values()]
    rows = [
        (each["name"], each["numerics"], each["summary"], _option_words(each)) for each in listed
    ]
    out.emit(listed, report.table(("pass", "numerics", "what it does", "options"), rows))


def describe(each: "type[Pass]") -> dict[str, Any]:
    """Return a pass's name, documentation, facts and options, as plain data."""
    text = inspect.cleandoc(each.__doc__ or "")
    return {
        "name": each.name,
        "summary": text.partition("\n")[0],
        "doc": text,
        "numerics": each.numerics,
        "needs": sorted(each.needs),
        "gives": sorted(each.gives),
        "breaks": sorted(each.breaks),
        "options": {
            field.name: {"type": _type(field.type), "default": _default(field)}
            for field in dataclasses.fields(each)
        },
    }


def _page(found: dict[str, Any]) -> str:
    facts = [f"numerics: {found['numerics']}"]
    facts += [f"{key}: {', '.join(found[key])}" for key in ("needs", "gives", "breaks")]
    lines = [found["name"], "", found["doc"], "", *(f for f in facts if not f.endswith(": "))]
    for name, option in found["options"].items():
        lines.append(f"--set {found['name']}.{name}={option['default']}  ({option['type']})")
    return "\n".join(lines)


def _option_words(found: dict[str, Any]) -> str:
    return ", ".join(f"{name}={option['default']}" for name, option in found["options"].items())


def _type(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    plain = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    return annotation.__name__ if plain else str(annotation).replace("typing.", "")


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None
