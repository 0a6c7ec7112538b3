"""The debugging options of `qgraph compile`."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgraph.commands.output import Output
from qgraph.errors import UsageError

if TYPE_CHECKING:
    from qgraph.debug import Stopped
    from qgraph.pipeline import Hook, Stage


@dataclass(frozen=True)
class DebugOptions:
    """The debugging options that are hooks.

    Attributes:
        dump_ir: Folder for `--dump-ir`.
        print_after: Passes for `--print-after`, or `all`.
        stop_after: Pass for `--stop-after`.
        verify: Level for `--verify`.
    """

    dump_ir: str | None = None
    print_after: Sequence[str] = ()
    stop_after: str | None = None
    verify: str | None = None


def debug_hooks(
    options: DebugOptions, stages: "list[Stage]", model: str, data: str | None, recipe: str | None
) -> "list[Hook]":
    """Return the hooks that the debugging options ask for.

    The dump comes first, so that a graph that a check refuses can be looked at.

    Raises:
        UsageError: A pass or level of that name does not exist, or the dump folder is in use.
        QGraphError: `--verify numeric` can't run the original.
    """
    from qgraph import debug
    from qgraph.passes import pass_class

    for name in options.print_after:
        if name != "all":
            pass_class(name)
    if options.stop_after is not None:
        pass_class(options.stop_after)
    hooks = [debug.collect(stages)]
    if options.dump_ir is not None:
        hooks.append(debug.dump_ir(Path(options.dump_ir)))
    if options.print_after:
        hooks.append(debug.print_after(options.print_after, sys.stderr.write))
    if options.verify is not None:
        original = Path(model) / "model.onnx" if Path(model).is_dir() else Path(model)
        numeric = options.verify == "numeric" and data is not None
        feeds = _first_sample(original, data, recipe) if numeric else None
        hooks.append(debug.verify(options.verify, original, feeds))
    if options.stop_after is not None:
        hooks.append(debug.stop_after(options.stop_after))
    return hooks


def stop_path(model: str, stop_after: str, output: str | None) -> Path:
    """Return the file that `--stop-after` writes."""
    if output is None:
        return Path(f"{Path(model).stem}.after-{stop_after}.onnx")
    if not output.endswith(".onnx"):
        raise UsageError(
            f"-o {output} with --stop-after names no .onnx file",
            fix="a compile that is stopped makes no artifact: name a file, such as -o out.onnx",
        )
    return Path(output)


@contextmanager
def artifact_folder(output: str | None, stop_at: Path | None) -> Iterator[str | Path | None]:
    """Give the artifact's folder; one for the bin where compiling will stop on the way."""
    if stop_at is None:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="qgraph-stop-") as scratch:
        yield Path(scratch) / "artifact"


def stopped_at(out: Output, stopped: "Stopped", path: Path, stages: "list[Stage]") -> None:
    """Write the graph of a compile that was stopped."""
    from qgraph import onnx_io

    onnx_io.save(stopped.graph, path)
    found: dict[str, Any] = {"stopped_after": stopped.stage.name, "model": str(path)}
    found["passes"] = [{"name": s.name, "seconds": s.seconds} for s in stages]
    out.emit(found, f"stopped after {stopped.stage.name}: {path}")


def show_times(out: Output, stages: "list[Stage]") -> None:
    """Print the passes' times on stderr, longest first."""
    from qgraph import report

    total = sum(stage.seconds for stage in stages) or 1.0
    rows = [
        (s.name, f"{s.seconds * 1e3:.1f}", f"{s.seconds / total:.1%}")
        for s in sorted(stages, key=lambda s: -s.seconds)
    ]
    rows.append(("all passes", f"{total * 1e3:.1f}", "100.0%"))
    out.stderr.print(report.table(("pass", "ms", "share"), rows, right="ms share"))


def _first_sample(original: Path, data: Any, recipe: str | None) -> dict[str, Any]:
    """Return the first sample of the data as feeds for the original."""
    from qgraph.data import open_data
    from qgraph.kv_cache import cache_axes_of
    from qgraph.recipe import load_recipe
    from qgraph.runtime.reference import open_reference

    with open_reference(original) as session:
        images = load_recipe(recipe or "default").images
        caches = cache_axes_of(original, session.inputs)
        dataset = open_data(data, session.inputs, images=images, caches=caches, samples=1)
        return dict(next(iter(dataset)))
