"""`qgraph completion`: the script that makes a shell complete commands, options and names."""

import os
from pathlib import Path
from typing import Annotated

import typer

from qgraph.errors import UsageError, unknown_name

EXAMPLES = """[bold]Examples[/bold]

source <(qgraph completion bash)  [dim]# in ~/.bashrc[/dim]

qgraph completion zsh > ~/.zfunc/_qgraph

qgraph completion fish > ~/.config/fish/completions/qgraph.fish"""

SHELLS = ("bash", "zsh", "fish")


def command(
    ctx: typer.Context,
    shell: Annotated[
        str | None,
        typer.Argument(
            metavar="[bash|zsh|fish]",
            help="Which shell; default: the one in $SHELL.",
            autocompletion=lambda: list(SHELLS),
        ),
    ] = None,
) -> None:
    """Print a completion script for your shell."""
    from typer.completion import get_completion_inspect_parameters, shell_complete

    if shell is None:
        shell = Path(os.environ.get("SHELL", "")).name
        if shell not in SHELLS:
            raise UsageError(
                f"can't tell your shell from $SHELL ({shell or 'not set'})",
                fix=f"name one of: {', '.join(SHELLS)}",
            )
    if shell not in SHELLS:
        raise unknown_name("shell", shell, SHELLS)
    get_completion_inspect_parameters()  # typer learns the shells' scripts here
    shell_complete(ctx.find_root().command, {}, "qgraph", "_QGRAPH_COMPLETE", f"source_{shell}")
