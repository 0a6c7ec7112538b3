"""Where a search gets its times from: engines that run here, or estimates for a device."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from qgraph.cache import Cache
from qgraph.errors import EngineError, UsageError
from qgraph.runtime import backend
from qgraph.runtime.backend import Session
from qgraph.search.costs import Costs, Engine, time_units
from qgraph.search.costs_file import CostsFile
from qgraph.search.devices import load_device, named_devices
from qgraph.search.estimates import Estimated
from qgraph.search.goal import Goal
from qgraph.search.unit_parts import UnitParts
from qgraph.search.ways import Way
from qgraph.search.whole import Round, Whole, time_whole, with_memory
from qgraph.target import Target

Progress = Callable[[int, int], None]


class Times(Protocol):
    """Times of whole models and of units, and sessions to score models in.

    Attributes:
        estimated: How times are estimated; empty where they are measured.
    """

    estimated: str

    def whole(
        self,
        models: Sequence[Whole],
        feeds: Mapping[str, Any],
        budget_s: float | None = None,
        engine: Engine | None = None,
    ) -> Round:
        """Time whole models; see `time_whole`."""
        ...

    def units(
        self,
        parts: UnitParts,
        ways: Sequence[Sequence[Way]],
        engine: Engine,
        *,
        store: Cache | None,
        progress: Progress,
    ) -> Costs:
        """Time units; see `time_units`."""
        ...

    def memory(self, found: Round, feeds: Mapping[str, Any]) -> Round:
        """Measure each model's peak memory."""
        ...

    def open(self, whole: Whole, engine: Engine) -> Session:
        """Open a model to be scored."""
        ...


class Measured:
    """Times of the target's engines, measured here; those of units may come from a file."""

    estimated = ""

    def __init__(
        self,
        target: Target,
        given: CostsFile | None,
        warn: Callable[[str], None],
        asked: Mapping[str, BaseModel | None] | None = None,
    ) -> None:
        """Keep what is needed; `asked` is what the user has decided of how engines run."""
        self.target, self.given, self.warn, self.asked = target, given, warn, asked
        self._ways: dict[str, set[str]] = {}

    def whole(
        self,
        models: Sequence[Whole],
        feeds: Mapping[str, Any],
        budget_s: float | None = None,
        engine: Engine | None = None,
    ) -> Round:
        """Time whole models in turn."""
        return time_whole(self.target, models, feeds, budget_s, engine, self.asked, self._ways)

    def units(
        self,
        parts: UnitParts,
        ways: Sequence[Sequence[Way]],
        engine: Engine,
        *,
        store: Cache | None,
        progress: Progress,
    ) -> Costs:
        """Time units, but those that the file has of the same engine."""
        given = self.given
        if given is not None and given.engine != str(engine):
            self.warn(
                f"--costs are of {given.engine}, and {engine} is the fastest here: "
                "units were timed instead"
            )
            given = None
        known = {} if given is None else given.by_key()
        return time_units(parts, ways, engine, store=store, progress=progress, given=known)

    def memory(self, found: Round, feeds: Mapping[str, Any]) -> Round:
        """Measure each model's peak memory, in a process of its own."""
        return with_memory(found, feeds)

    def open(self, whole: Whole, engine: Engine) -> Session:
        """Open a model in the engine."""
        return backend(engine.backend).open(whole.model, engine.options)


def choose_times(
    target: Target,
    goal: Goal,
    device: str | None,
    given: CostsFile | None,
    warn: Callable[[str], None],
    asked: Mapping[str, BaseModel | None] | None = None,
) -> Times:
    """Measure where an engine of the target runs here, else estimate.

    Args:
        target: The target.
        goal: What is asked for.
        device: Name or file of the device to estimate for; None for the target's.
        given: Measured times of units.
        warn: Told what the user should know.
        asked: By engine, what the user has decided of how it runs.

    Raises:
        UsageError: A device is given where times are measured, or memory is asked for without.
        EngineError: No engine runs here, and no device is known.
    """
    if given is not None and target.engines and given.backend not in target.engines:
        raise UsageError(
            f"--costs are of {given.backend}, which {target.name} does not run in",
            fix=f"give some of {' or '.join(target.engines)}",
        )
    reasons = [backend(name).unavailable() for name in target.engines]
    if any(reason is None for reason in reasons):
        if device is not None:
            raise UsageError(
                f"--device {device}: an engine of {target.name} runs here, so times are measured",
                fix="leave it out",
            )
        return Measured(target, given, warn, asked)
    why = "; ".join(reason for reason in reasons if reason) or target.no_engine
    absent = f"no engine of {target.name} runs here: {why}"
    name = device or target.device
    if not name:
        shipped = ", ".join(named_devices())
        raise EngineError(
            f"{absent}; nothing can be measured, and there is no device file to estimate with",
            fix=f"search where the engine runs, pass --device FILE.toml (as {shipped} is), or "
            "compile without --max-drop",
        )
    found = load_device(name)
    used = [each for each in target.engines or found.backends if each in found.backends]
    if not used:
        raise UsageError(
            f"device {Path(name).name} says nothing of {' or '.join(target.engines)}",
            fix="add a table [backends.NAME] for one of them",
        )
    if goal.optimize == "memory":
        raise UsageError(f"memory is measured, and {absent}", fix="pass --optimize size")
    return Estimated(found, used, absent, given, warn)
