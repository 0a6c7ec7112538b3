"""A session around another one, for those that feed or read it in another way."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qgraph.runtime.backend import ExecutedOp, Session
from qgraph.runtime.session import SessionBase


class Wrapped(SessionBase):
    """Passes `run` on, which subclasses change; DLPack and buffers go by way of it, on the host."""

    def __init__(self, session: Session) -> None:
        """Wrap an open session."""
        super().__init__(session.engine, session.inputs, session.outputs)
        self._session = session

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run the session."""
        return self._session.run(feeds, outputs)

    def executed(self) -> tuple[ExecutedOp, ...]:
        """What ran in the session since opening."""
        return self._session.executed()

    def _release(self) -> None:
        self._session.close()


class OnOwnFeeds(Wrapped):
    """Runs on its own feeds whatever it is given, to be timed beside sessions that take others."""

    def __init__(self, session: Session, feeds: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Wrap an open session."""
        super().__init__(session)
        self._feeds, self.device = feeds, session.device

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run the session on its own feeds."""
        return self._session.run(self._feeds, outputs)


class OnDevice(Wrapped):
    """Runs on buffers on the engine's device, to be timed without what copying takes."""

    def __init__(self, session: Session, feeds: Mapping[str, Any]) -> None:
        """Bind the feeds in an open session."""
        super().__init__(session)
        self._bound, self.device = session.bind(feeds), session.device

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run on the buffers; results stay there."""
        self._bound.run()
        return {}
