"""A decoder's tokenizer: text to tokens and back, and the tokens that end a text.

The files are Hugging Face's: `tokenizer.json`, which the package `tokenizers` reads, and where there
is one `tokenizer_config.json` beside it, which names the token that ends a text.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qgraph.errors import ModelError, UsageError
from qgraph.runtime.backend import TensorInfo
from qgraph.strict_json import read_json

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
# Special tokens with which models end a text, or their turn in a chat.
_ENDS = (
    *("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|end|>"),
    *("</s>", "<eos>", "<end_of_turn>"),
)


class TextTokenizer:
    """A tokenizer read from its files.

    Attributes:
        path: Its `tokenizer.json`.
        ends: Tokens behind which nothing is generated.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the files.

        Raises:
            UsageError: The package `tokenizers` is not installed, or there is no such file.
            ModelError: The file is no tokenizer.
        """
        self.path = Path(path)
        try:
            import tokenizers
        except ImportError as error:
            raise UsageError(
                "reading text needs the package tokenizers", fix="run `pip install 'qgraph[text]'`"
            ) from error
        if not self.path.is_file():
            raise UsageError("no such file", where=str(path), fix="name a tokenizer.json")
        try:
            self._tokenizer: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise ModelError(f"is no tokenizer: {error}", where=str(path)) from error
        added = self._tokenizer.get_added_tokens_decoder()
        usual = {
            index for index, token in added.items() if token.special and token.content in _ENDS
        }
        end = self._tokenizer.token_to_id(self._configured_end())
        self.ends = frozenset(usual if end is None else usual | {end})

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with those that the tokenizer puts around it."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def stream(self, before: Sequence[int]) -> Callable[[int], str]:
        """Return a function that gives, for each next token, the text that has become certain.

        Args:
            before: Tokens in front, whose text is not given.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(ids=list(before), skip_special_tokens=True)

        def step(token: int) -> str:
            return stream.step(self._tokenizer, token) or ""

        return step

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        text: str = self._tokenizer.decode(list(ids))
        return text

    def _configured_end(self) -> str:
        """Return the end that `tokenizer_config.json` names, as text or in a description; or ''."""
        file = self.path.with_name(CONFIG)
        config: Any = read_json(file) if file.is_file() else {}
        token = config.get("eos_token") if isinstance(config, dict) else None
        token = token.get("content") if isinstance(token, dict) else token
        return token if isinstance(token, str) else ""


def find_tokenizer(model: Path) -> Path:
    """Return the `tokenizer.json` beside a model.

    Raises:
        UsageError: There is none.
    """
    path = model.with_name(TOKENIZER)
    if not path.is_file():
        raise UsageError(
            f"has no {TOKENIZER} beside it", where=str(model), fix="pass --tokenizer FILE"
        )
    return path


def copy_tokenizer(original: Path, inputs: Sequence[TensorInfo], folder: Path) -> None:
    """Copy the tokenizer beside a model that takes tokens into an artifact's folder.

    Args:
        original: The model's file.
        inputs: Its inputs.
        folder: The artifact's.
    """
    if not any("int" in info.dtype and len(info.shape) == 2 for info in inputs):
        return
    for name in (TOKENIZER, CONFIG):
        file = original.with_name(name)
        if file.is_file():
            shutil.copyfile(file, folder / name)
