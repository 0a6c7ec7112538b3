"""Tokenizer files made of the vocabulary in a GGUF file.

`tokenizer.json` is what the package `tokenizers` reads; `tokenizer_config.json` beside it says, as
Hugging Face's files do, which token ends a text and how a chat is written.
"""

import json
from typing import TYPE_CHECKING, Any

from models.zoo.gguf_file import GgufFile
from qgraph.errors import ModelError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The only way of splitting text in front of BPE that is here: every digit by itself, then GPT-2's
# words. See llama.cpp's src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM.
PRE_TOKENIZER = "smollm"
_CONTROL = 3  # gguf's TokenType.CONTROL


def tokenizer(file: GgufFile) -> "Tokenizer":
    """Return the byte-level BPE tokenizer of a GGUF file.

    Raises:
        UsageError: The package `tokenizers` is not installed.
        ModelError: The file has another kind of tokenizer.
    """
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ImportError as error:
        raise UsageError("needs the package tokenizers", fix="pip install tokenizers") from error
    kind = (file.field("tokenizer.ggml.model"), file.field("tokenizer.ggml.pre"))
    if kind != ("gpt2", PRE_TOKENIZER):
        raise ModelError(f"has the tokenizer {kind}", where=str(file.path), fix="use SmolLM2's")
    tokens = file.field("tokenizer.ggml.tokens")
    pairs = (merge.split(" ") for merge in file.field("tokenizer.ggml.merges"))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, [(first, second) for first, second in pairs]))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    made.decoder = decoders.ByteLevel()
    types = file.field("tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    made.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    return made


def files(file: GgufFile) -> dict[str, str]:
    """Return the content of `tokenizer.json` and `tokenizer_config.json` by name.

    Raises:
        UsageError, ModelError: See `tokenizer`.
    """
    tokens = file.field("tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        f"{name}_token": tokens[file.field(f"tokenizer.ggml.{name}_token_id")]
        for name in ("bos", "eos")
    }
    config["model_max_length"] = file.config().context
    config["chat_template"] = file.field("tokenizer.chat_template")
    return {
        "tokenizer.json": tokenizer(file).to_str() + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }
