"""Sources made of Python objects that give dicts: functions, generators, loaders, lists."""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from qgraph.data.conform import check_names
from qgraph.data.inputs import InputLayout
from qgraph.data.source import Item, Pending, Source
from qgraph.errors import DataError, QGraphError

_SPEC = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_function_spec(text: str) -> bool:
    """Whether a text reads `package.module:function`."""
    return _SPEC.fullmatch(text) is not None


def import_function(spec: str) -> Callable[..., Any]:
    """Import `package.module:function`, the current folder coming first. This runs its code.

    The current folder stays on the search path, behind everything installed, for what the
    function itself imports.

    Raises:
        DataError: The module or the function isn't there, importing fails, or it isn't callable.
    """
    module_name, _, path = spec.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except QGraphError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise DataError(
            f"module {module_name!r} can't be imported ({type(error).__name__}: {error})",
            where=spec,
            fix=f"run from the folder that holds it, or install it (looked in {here} too)",
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
            sys.path.append(here)
    for part in path.split("."):
        if not hasattr(found, part):
            names = [n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n))]
            known = ", ".join(names[:10]) or "no functions"
            raise DataError(f"there is no {part!r} (there: {known})", where=spec)
        found = getattr(found, part)
    if not callable(found):
        raise DataError(f"is a {type(found).__name__}, not a function", where=spec)
    function: Callable[..., Any] = found
    return function


_END = object()


class IterableSource(Source):
    """Dicts by input name, from an iterable or from a function that returns one.

    An object that is its own iterator (a generator) can be read once. Everything else is asked
    anew each time, and has to give the same items again; `DataSet` notices when it doesn't.
    """

    hashed_by_reading = True

    def __init__(
        self,
        given: Iterable[Item] | Callable[[], Iterable[Item]],
        layout: InputLayout,
        where: str = "data",
    ) -> None:
        """Keep the object; nothing is read."""
        self._given, self._layout, self.where = given, layout, where
        self.kind = "function" if callable(given) else "iterable"
        self.rereadable = callable(given) or iter(given) is not given
        self._used = False

    @property
    def bounded(self) -> bool:
        """Whether the object says how long it is."""
        return hasattr(self._given, "__len__")

    @property
    def in_memory(self) -> bool:
        """Whether reading it runs no code of the user's."""
        return isinstance(self._given, list | tuple)

    def items(self) -> Iterator[Pending]:
        """Ask the object for its items; what it raises becomes a DataError."""
        if self._used and not self.rereadable:
            raise DataError(
                "can be read only once and has been read",
                where=self.where,
                fix="give a list, or a function that makes a new generator",
            )
        self._used = True
        stream = self._guarded(self._start)
        index = 0
        while True:
            item = self._guarded(partial(next, stream, _END), index)
            if item is _END:
                return
            place = f"{self.where}: sample {index}"
            if not isinstance(item, Mapping):
                raise DataError(
                    f"gives a {type(item).__name__}, not a dict",
                    where=place,
                    fix=f"give dicts with the keys {', '.join(self._layout.names)}",
                )
            check_names([str(key) for key in item], self._layout, place)
            yield Pending(place, partial(_same, item))
            index += 1

    def _start(self) -> Iterator[Any]:
        return iter(self._given() if callable(self._given) else self._given)

    def _guarded(self, step: Callable[[], Any], index: int | None = None) -> Any:
        try:
            return step()
        except QGraphError:
            raise
        except Exception as error:  # the user's own code may raise anything
            when = "when called" if index is None else f"at sample {index}"
            raise DataError(
                f"raised {type(error).__name__} {when} ({error})", where=self.where
            ) from error


def _same(item: Item) -> Item:
    return item
