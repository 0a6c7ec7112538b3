"""What passes are told about the job: the target, the recipe, the data and where to report."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qgraph.pipeline import Stage


def _ignore(*_: Any) -> None:
    """Do nothing: the default for every listener."""


@dataclass
class Context:
    """The job's surroundings, the same for every pass.

    Attributes:
        target: The target compiled for, a `qgraph.target.Target`, or None.
        recipe: The recipe, a `qgraph.recipe.Recipe`, or None.
        data: Calibration samples, a re-iterable of feeds by input name, or None.
        exclude: Globs of node names and operators that stay in float.
        seed: For everything random.
        encodings: A `qgraph.encodings_json.Encodings` that calibration takes instead of data, or None.
        tasks: A `qgraph.tasks.Executor` for work that can be cut up, or None for this process.
        warn: Called with a line that the user should see.
        info: Called with a line that is worth showing with -v.
        progress: Called as (what, done, total or None) while something long runs.
        starting: Called with a pass's name before it runs.
        finished: Called after each pass.
    """

    target: Any = None
    recipe: Any = None
    data: Iterable[dict[str, Any]] | None = None
    exclude: tuple[str, ...] = ()
    seed: int = 0
    encodings: Any = None
    tasks: Any = None
    warn: Callable[[str], None] = field(default=_ignore)
    info: Callable[[str], None] = field(default=_ignore)
    progress: Callable[[str, int, int | None], None] = field(default=_ignore)
    starting: Callable[[str], None] = field(default=_ignore)
    finished: Callable[["Stage"], None] = field(default=_ignore)
