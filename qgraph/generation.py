"""Text from a decoder: what a quantized model says, and how fast it says it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np

from qgraph.decoder import Decoder, context_length
from qgraph.errors import DataError, EngineError, UsageError
from qgraph.kv_cache import find_caches
from qgraph.runnable import runnable
from qgraph.sampling import Sampling
from qgraph.tokenizer import TextTokenizer, find_tokenizer

Stopped = Literal["end of text", "number of tokens", "end of context"]
WITHOUT_CACHE = "the model has no KV cache: every token runs the whole sequence again"
WITHOUT_END = "no token is known that ends a text: generating all the tokens that were asked for"


@dataclass(frozen=True)
class Generation:
    """What a decoder wrote.

    Attributes:
        text: The text behind the prompt; empty where there was no tokenizer.
        ids: Its tokens, without one that ends the text.
        prompt_ids: The prompt's tokens.
        stopped: Why it ended.
        engine: Where it ran.
        prefill_s: Seconds for the prompt, up to the first token.
        decode_s: Seconds for the other tokens.
        steps: Runs of the model behind the prompt, one for each of those.
        notes: What the user should know.
    """

    text: str
    ids: list[int]
    prompt_ids: list[int]
    stopped: Stopped
    engine: str
    prefill_s: float
    decode_s: float
    steps: int
    notes: list[str] = field(default_factory=list)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Tokens of the prompt a second."""
        return len(self.prompt_ids) / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Generated tokens a second, the first one aside; None where there was no other."""
        return self.steps / self.decode_s if self.steps else None

    def as_json(self) -> dict[str, Any]:
        """Return everything by name, rates included; JSON-able."""
        rates = ("prefill_tokens_per_s", "decode_tokens_per_s")
        return {**self.__dict__, **{name: getattr(self, name) for name in rates}}


def generate(
    model: str | os.PathLike[str],
    prompt: str | Sequence[int],
    *,
    tokens: int = 128,
    tokenizer: str | os.PathLike[str] | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
    engine: str | None = None,
    threads: int = 0,
    on_text: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Generation:
    """Continue a prompt with a decoder, token by token.

    Args:
        model: An ONNX file or an artifact's folder.
        prompt: A text, or tokens. Special tokens are read as such in a text.
        tokens: The most tokens to generate.
        tokenizer: Its `tokenizer.json`; default: the one beside the model. A prompt of tokens
            needs none, but then gives no text.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        top_k: Draw from the k likeliest tokens only; 0 for all.
        seed: Of the draws.
        engine: Overrides the artifact's engine; a plain model runs in onnxruntime's CPU provider.
        threads: Threads, 0 for all cores.
        on_text: Called with pieces of text as they come.
        on_note: Called with each note, before the first piece of text.

    Raises:
        UsageError: An option is wrong, or there is no tokenizer.
        ModelError: There is no such file, or it is no decoder.
        DataError: The prompt is empty, longer than the model's context, or of another vocabulary.
        EngineError: The engine can't be used here or fails.
    """
    if tokens < 1:
        raise UsageError(f"{tokens} tokens can't be generated", fix="give at least 1")
    sampling = Sampling(temperature, top_k)
    chosen = runnable(os.fspath(model), engine, threads)
    reader = _reader(prompt, tokenizer, chosen.model)
    ids = reader.encode(prompt) if isinstance(prompt, str) and reader else [int(i) for i in prompt]
    notes = []
    with chosen.open() as session:
        structure = chosen.structure()
        decoder = Decoder(session, find_caches(structure), context_length(structure))
        _check_prompt(ids, decoder)
        if not decoder.cached:
            notes.append(WITHOUT_CACHE)
        if reader is not None and not reader.ends:
            notes.append(WITHOUT_END)
        for note in notes:
            if on_note is not None:
                on_note(note)
        writing = _Writing(decoder, sampling, np.random.default_rng(seed), reader, on_text)
        stopped = writing.run(ids, tokens)
        return Generation(
            reader.decode(writing.ids) if reader else "",
            writing.ids,
            ids,
            stopped,
            session.engine,
            writing.seconds[0],
            sum(writing.seconds[1:]),
            len(writing.seconds) - 1,
            notes,
        )


def _reader(
    prompt: str | Sequence[int], tokenizer: str | os.PathLike[str] | None, model: Path
) -> TextTokenizer | None:
    """Return the tokenizer; none where the prompt is one of tokens and none was named."""
    if tokenizer is not None:
        return TextTokenizer(tokenizer)
    return TextTokenizer(find_tokenizer(model)) if isinstance(prompt, str) else None


def _check_prompt(ids: list[int], decoder: Decoder) -> None:
    """Raise a DataError where the model can't take the prompt."""
    if not ids:
        raise DataError("the prompt has no tokens", fix="give a text")
    if decoder.context is not None and len(ids) > decoder.context:
        raise DataError(
            f"the prompt has {len(ids)} tokens, the model's context is {decoder.context}",
            fix="shorten it",
        )
    known = decoder.vocabulary
    if known is not None and not (min(ids) >= 0 and max(ids) < known):
        wrong = next(i for i in ids if not 0 <= i < known)
        raise DataError(
            f"the prompt has the token {wrong}, the model knows {known}",
            fix="pass the model's own tokenizer with --tokenizer",
        )


class _Writing:
    """The loop, and what came of it."""

    def __init__(
        self,
        decoder: Decoder,
        sampling: Sampling,
        rng: np.random.Generator,
        reader: TextTokenizer | None,
        on_text: Callable[[str], None] | None,
    ) -> None:
        self._decoder, self._sampling, self._rng = decoder, sampling, rng
        self._reader, self._on_text = reader, on_text
        self.ids: list[int] = []
        self.seconds: list[float] = []

    def run(self, prompt: list[int], tokens: int) -> Stopped:
        """Run the prompt, then token by token until something ends it."""
        ends = self._reader.ends if self._reader else frozenset()
        piece = self._reader.stream(prompt) if self._reader and self._on_text else None
        new = prompt
        while True:
            token = self._next(new)
            if token in ends:
                return "end of text"
            self.ids.append(token)
            if piece is not None and self._on_text is not None:
                self._on_text(piece(token))
            if len(self.ids) == tokens:
                return "number of tokens"
            if self._decoder.length == self._decoder.context:
                return "end of context"
            new = [token]

    def _next(self, new: list[int]) -> int:
        """Run the model on new tokens and choose the next."""
        start = perf_counter()
        try:
            logits = self._decoder.step(new)
        except EngineError as error:
            raise EngineError(
                f"failed at token {self._decoder.length + len(new)}: {error.what}",
                where=error.where,
                fix=error.fix or "the model's context may be shorter",
            ) from error
        token = self._sampling.choose(logits, self._rng)
        self.seconds.append(perf_counter() - start)
        return token
