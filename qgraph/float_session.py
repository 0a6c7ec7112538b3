"""An artifact with integer inputs or outputs, run like the original."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qgraph.interface import Interface
from qgraph.runtime.backend import Session
from qgraph.runtime.wrapped import Wrapped


class FloatSession(Wrapped):
    """A session that takes the original's floats and gives floats, whatever its model does."""

    def __init__(self, session: Session, interface: Interface, *, nearest: bool = False) -> None:
        """Wrap `session`, which runs a model with that interface.

        Args:
            session: An open session, closed with this one.
            interface: What its model takes and hands out.
            nearest: Whether images that are not made of 8-bit pixels may be rounded to some.
        """
        super().__init__(session)
        self._interface, self._nearest = interface, nearest
        taken = interface.inputs
        self.inputs = tuple(
            taken[info.name].original(info) if info.name in taken else info
            for info in session.inputs
        )
        self.outputs = tuple(
            replace(info, dtype="float32") if info.name in interface.outputs else info
            for info in session.outputs
        )

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run once.

        Raises:
            DataError: As any session, and where an image is not made of 8-bit pixels.
        """
        raw = self._interface.raw(feeds, nearest=self._nearest)
        return self._interface.values(self._session.run(raw, outputs))
