"""The command line: `qgraph COMMAND ...`.

Exit status: 0 done, 1 the model or data can't be compiled, 2 wrong usage, 130 interrupted, 141 the
reader of the output went away.
"""

import inspect as python_inspect
import json
import os
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from qgraph import __version__
from qgraph.commands import (
    bench,
    bisect,
    calibrate,
    compile,
    completion,
    deploy,
    diff,
    eval,
    explain,
    generate,
    inspect,
    layers,
    lint,
    passes,
    recipes,
    run,
    targets,
    verify,
)
from qgraph.commands.options import Quiet, Shared, Verbose
from qgraph.errors import QGraphError
from qgraph.text import one_line

COMMANDS = {
    "compile": compile,
    "calibrate": calibrate,
    "inspect": inspect,
    "lint": lint,
    "run": run,
    "generate": generate,
    "bench": bench,
    "eval": eval,
    "deploy": deploy,
    "verify": verify,
    "layers": layers,
    "bisect": bisect,
    "diff": diff,
    "explain": explain,
    "passes": passes,
    "targets": targets,
    "recipes": recipes,
    "completion": completion,
}
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE
EXAMPLES = """[bold]Examples[/bold]

qgraph compile model.onnx --data samples.npz

qgraph inspect model.onnx

qgraph bench model.int8 --vs model.onnx

qgraph COMMAND --help says more about a command."""


class Application(TyperGroup):
    """Turns every way in which a command can end into one line and an exit status."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command line and exit."""
        words = kwargs.get("args", args[0] if args else None)
        words = [str(word) for word in (sys.argv[1:] if words is None else words)]
        shared = Shared(json="--json" in words)
        options: dict[str, Any] = {"prog_name": "qgraph", "standalone_mode": False, "obj": shared}
        try:
            if os.environ.get("_QGRAPH_COMPLETE"):
                _register_completion()
            code = super().main(args=words, **options)
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except QGraphError as error:
            code = _fail(error, shared, error.exit_code)
        except BrokenPipeError:
            code = _reader_gone()
        except RecursionError as error:
            code = _fail(QGraphError("the model is nested too deeply"), shared, 1, error)
        except MemoryError as error:
            code = _fail(QGraphError("out of memory"), shared, 1, error)
        except Exception as error:  # noqa: BLE001 - the user gets one line, not a traceback
            if not hasattr(error, "format_message"):
                code = _crash(error, shared)
            else:
                code = _fail(_usage(error), shared, getattr(error, "exit_code", 2), error)
        if code == INTERRUPTED:
            print("qgraph: interrupted", file=sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a reader that went away is not typer's to handle."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise typer.Exit(_reader_gone()) from None


def _unwrapped(doc: str | None) -> str:
    """Return a docstring with one line a paragraph: rich would keep the source's line breaks."""
    paragraphs = python_inspect.cleandoc(doc or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


app = typer.Typer(
    cls=Application,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for _name, _module in COMMANDS.items():
    app.command(_name, help=_unwrapped(_module.command.__doc__), epilog=_module.EXAMPLES)(
        _module.command
    )


def _version(wanted: bool) -> None:
    if wanted:
        print(f"qgraph {__version__}")
        raise typer.Exit


@app.callback(epilog=EXAMPLES, invoke_without_command=True)
def qgraph(
    ctx: typer.Context,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compile trained ONNX models to the fastest engine that still answers correctly."""
    ctx.ensure_object(Shared).add(verbose, quiet)
    if ctx.invoked_subcommand is None:
        print(ctx.get_help(), end="")
        raise typer.Exit(2)


def main() -> None:
    """Entry point of the `qgraph` script."""
    app()


def _usage(error: Any) -> QGraphError:
    """Turn typer's usage errors into qgraph's form, with the nearest option suggested."""
    what = str(error.format_message()).strip().rstrip(".")
    near = getattr(error, "possibilities", None)
    if getattr(error, "option_name", None) and near:
        what = f"no such option {error.option_name!r}, did you mean {near[0]!r}?"
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx is not None else "qgraph"
    return QGraphError(what, fix=f"see `{path} --help`")


def _fail(error: QGraphError, shared: Shared, code: int, cause: BaseException | None = None) -> int:
    """Print the error and return the exit status."""
    if shared.verbose >= 2:
        traceback.print_exception(cause or error, file=sys.stderr)
    try:
        print(f"qgraph: error: {one_line(str(error))}", file=sys.stderr)
        if shared.json:
            parts = {"what": error.what, "where": error.where, "fix": error.fix, "exit_code": code}
            print(json.dumps({"error": parts}, indent=2))
            sys.stdout.flush()
    except BrokenPipeError:
        return _reader_gone()
    return code


def _crash(error: Exception, shared: Shared) -> int:
    """Report a bug in qgraph, or an operating system's refusal that nothing else explained."""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        return _fail(QGraphError(what), shared, 1, error)
    fix = "this is a bug in qgraph; run again with -v -v and report the traceback"
    return _fail(QGraphError(what, fix=fix), shared, 1, error)


def _reader_gone() -> int:
    """Keep Python from complaining, when it ends, that stdout can't be flushed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return BROKEN_PIPE


def _register_completion() -> None:
    """Teach typer the shells; it does so itself only where its own options are in the help."""
    from typer.completion import get_completion_inspect_parameters

    get_completion_inspect_parameters()
