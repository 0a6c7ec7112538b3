"""A session around another one, for those that feed or read it in another way."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from qgraph.runtime.backend import ExecutedOp, Session


class Wrapped:
    """Passes everything on; subclasses change `run`."""

    def __init__(self, session: Session) -> None:
        """Wrap an open session."""
        self._session = session
        self.engine, self.inputs, self.outputs = session.engine, session.inputs, session.outputs

    def run(
        self, feeds: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run the session."""
        return self._session.run(feeds, outputs)

    def executed(self) -> tuple[ExecutedOp, ...]:
        """What ran in the session since opening."""
        return self._session.executed()

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session."""
        self.close()


class OnOwnFeeds(Wrapped):
    """Runs on its own feeds whatever it is given, to be timed beside sessions that take others."""

    def __init__(self, session: Session, feeds: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Wrap an open session."""
        super().__init__(session)
        self._feeds = feeds

    def run(
        self, feeds: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run the session on its own feeds."""
        return self._session.run(self._feeds, outputs)
