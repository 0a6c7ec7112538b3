"""What engines are timed on: a decoder's step of one token; of any other model, a sample."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qgraph.data import Feeds
from qgraph.decoder import Decoder
from qgraph.errors import DataError, EngineError, QGraphError
from qgraph.kv_cache import Cache
from qgraph.runtime.backend import Session, TensorInfo
from qgraph.runtime.batching import batched_inputs
from qgraph.runtime.reference import open_reference

# Tokens in front of the one that is timed: a short prompt and some of its answer.
PAST = 128


@dataclass(frozen=True)
class TimingSample:
    """Feeds, and what they are.

    Attributes:
        feeds: Arrays by input name, as the original takes them.
        what: Words for reports.
    """

    feeds: Feeds
    what: str


def timing_sample(
    original: Path,
    sample: Feeds,
    caches: Sequence[Cache],
    context: int | None,
    *,
    guessed: bool,
) -> TimingSample:
    """Run the original once on a sample, and say what engines are to be timed on.

    A decoder reads its prompt once and then takes one step for every token that it writes, so a
    step is what its engine must be fast at. The caches of that step are the original's own, of
    the sample's tokens.

    Args:
        original: The model as the user gave it.
        sample: Feeds by input name.
        caches: Its KV cache; empty for other models.
        context: Positions that the model has, where that is known.
        guessed: Whether the sample was made up from the inputs' types alone.

    Raises:
        DataError: The model refuses a guessed sample, as it may where axes are dynamic.
        EngineError: onnxruntime can't run the original.
    """
    with open_reference(original) as reference:
        _run(reference, sample, guessed)
        if not caches:
            return TimingSample(sample, "one sample")
        try:
            return _step(Decoder(reference, caches, context), sample)
        except QGraphError as error:
            return TimingSample(sample, f"one sample ({error.what})")


def of_batch(sample: TimingSample, inputs: Sequence[TensorInfo], batch: int | None) -> TimingSample:
    """Repeat a sample along the batch axis, where a batch is asked for and the axis is free.

    Args:
        sample: What was taken.
        inputs: The model's.
        batch: Rows that layers multiply at a time: samples, of texts by their tokens; None to leave
            the sample alone.
    """
    batched = batched_inputs(inputs)
    if batch is None or not batched or not isinstance(batched[0].shape[0], str):
        return sample
    names = {info.name for info in batched}
    count = max(1, batch // _tokens(sample.feeds, names))
    feeds = {
        name: np.resize(array, (count, *array.shape[1:])) if name in names and len(array) else array
        for name, array in sample.feeds.items()
    }
    return TimingSample(feeds, f"{sample.what}, batch {count}")


def _tokens(feeds: Feeds, batched: Collection[str]) -> int:
    """Tokens of one sample: the length of the first input that holds a row of integers."""
    texts = (x for name, x in feeds.items() if name in batched and x.dtype.kind in "iu")
    return next((max(1, x.shape[1]) for x in texts if x.ndim == 2), 1)


def _run(reference: Session, sample: Feeds, guessed: bool) -> None:
    try:
        reference.run(sample)
    except EngineError as error:
        if not guessed:
            raise
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in sample.items())
        raise DataError(
            f"the original model refuses guessed inputs ({shapes})",
            fix="pass samples that it takes with --data, "
            "or sizes with --data random:AXIS=LENGTH,...",
        ) from error


def _step(decoder: Decoder, sample: Feeds) -> TimingSample:
    """Return the feeds of a step of one token behind `PAST` others, fewer where no more fit."""
    past = PAST if decoder.context is None else min(PAST, decoder.context - 1)
    tokens = np.resize(sample[decoder.ids], past + 1).tolist()
    if past:
        decoder.step(tokens[:past])
    return TimingSample(decoder.feeds(tokens[past:]), f"one token behind {past}")
