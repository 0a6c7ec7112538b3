"""A decoder that is run token by token, with its KV cache where it has one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.data.caches import add_empty, with_caches
from qgraph.data.inputs import Feeds, InputSpec, read_layout
from qgraph.errors import DataError, EngineError, ModelError
from qgraph.graph import Graph
from qgraph.kv_cache import Cache
from qgraph.runtime.backend import Session

# Metadata that says how many positions a model has.
CONTEXT_KEY = "context_length"


def context_length(graph: Graph) -> int | None:
    """Return how many positions a decoder has, where its metadata says so."""
    text = graph.model.metadata_props.get(CONTEXT_KEY, "")
    return int(text) if text.isdecimal() and len(text) < 10 and int(text) else None


class Decoder:
    """One sequence of tokens that grows; the model gives the logits of what comes next.

    Attributes:
        ids: Name of the input that takes tokens.
        cached: Whether the model has a KV cache. Without one, every step runs the whole sequence.
        context: Positions that the model has, where that is known.
        vocabulary: Number of tokens that the model knows, where its output's shape says so.
        length: Tokens so far.
    """

    def __init__(self, session: Session, caches: Sequence[Cache], context: int | None) -> None:
        """Tell the model's inputs apart.

        Args:
            session: The model, opened.
            caches: Its KV cache; see `qgraph.kv_cache`.
            context: Positions that it has; see `context_length`.

        Raises:
            ModelError: It is no decoder: it has no token input or logits, or inputs that are
                neither tokens, mask, positions nor caches.
        """
        self._session = session
        self._caches = tuple(caches)
        axes = {cache.input: cache.axis for cache in caches}
        self._layout = with_caches(read_layout(session.inputs), axes)
        roles = {_role(spec): spec for spec in self._layout.inputs if spec.grows is None}
        others = len(self._layout.required) - len(roles)
        if others or "ids" not in roles or "" in roles:
            listed = "; ".join(str(s) for s in self._layout.inputs if s.grows is None)
            raise ModelError(
                f"is no decoder that can be run here (inputs beside caches: {listed})",
                fix="it takes token ids [batch, length], and perhaps attention_mask, position_ids "
                "and caches",
            )
        self._roles = roles
        self.ids = roles["ids"].name
        self._logits = self._logits_output()
        self._values: Feeds = {}
        self._seen: list[int] = []
        self.cached = bool(self._caches)
        self.context = context
        self.vocabulary = self._vocabulary()
        self.length = 0

    def step(self, ids: Sequence[int]) -> NDArray[Any]:
        """Put tokens behind those of former steps.

        Args:
            ids: At least one token.

        Returns:
            Logits of the token behind the last one, [vocabulary].

        Raises:
            DataError: The model fixes another length.
            EngineError: The engine fails, or gives no logits.
        """
        shape = self._roles["ids"].shape
        fixed = shape[1] if shape else None
        if self.cached and fixed == 1 and len(ids) > 1:
            for token in ids[:-1]:
                self._run([token])
            ids = ids[-1:]
        return self._run(ids)

    def feeds(self, ids: Sequence[int]) -> Feeds:
        """Return what the model is fed to put tokens behind those of former steps.

        Raises:
            DataError: The model fixes another length.
        """
        total = len(self._seen) + len(ids)
        new = [*ids] if self.cached else [*self._seen, *ids]
        values = {
            "ids": np.array([new]),
            "mask": np.ones((1, total)),
            "positions": np.arange(total - len(new), total)[None],
        }
        feeds = {spec.name: values[role].astype(spec.dtype) for role, spec in self._roles.items()}
        fixed = (self._roles["ids"].shape or (None, None))[1]
        if isinstance(fixed, int) and fixed != len(new):
            raise DataError(
                f"takes {fixed} tokens in a run, there are {len(new)}",
                where=f"input {self.ids!r}",
                fix="export the model with a dynamic length",
            )
        return add_empty(feeds | self._values, self._layout)

    def _run(self, ids: Sequence[int]) -> NDArray[Any]:
        outputs = [self._logits, *(cache.output for cache in self._caches)]
        results = self._session.run(self.feeds(ids), outputs)
        self._seen += ids
        self._values = {cache.input: results[cache.output] for cache in self._caches}
        self.length = len(self._seen)
        logits = results[self._logits]
        if logits.ndim != 3 or not logits.shape[1]:
            raise EngineError(f"{self._logits!r} has shape {list(logits.shape)}, no logits")
        last: NDArray[Any] = logits[0, -1]
        return last

    def _vocabulary(self) -> int | None:
        (shape,) = (info.shape for info in self._session.outputs if info.name == self._logits)
        return shape[-1] if shape and isinstance(shape[-1], int) else None

    def _logits_output(self) -> str:
        """Return the output that no cache is; the one called logits where there are several."""
        caches = {cache.output for cache in self._caches}
        names = [info.name for info in self._session.outputs if info.name not in caches]
        if "logits" in names:
            return "logits"
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise ModelError(f"is no decoder: which output are its logits? ({listed})")
        return names[0]


def _role(spec: InputSpec) -> str:
    """Return what an input is: ids, mask, positions, or '' for anything else."""
    name = spec.name.lower()
    if len(spec.shape or ()) != 2:
        return ""
    if "mask" in name:
        return "mask"
    if spec.dtype not in (np.int32, np.int64):
        return ""
    return "positions" if "position" in name else "ids"
