"""Llama decoders in GGUF files: sizes, weights in float32 and the tokenizer's tables.

GGUF is llama.cpp's format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the package
`gguf` reads it and undoes its quantization.
"""

from pathlib import Path
from typing import Any

import numpy as np

from models.zoo.llama import Array, Config
from qgraph.errors import ModelError, UsageError

ARCHITECTURE = "llama"
_LAYER = {
    "norm1": "attn_norm",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.o": "attn_output",
    "norm2": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}


class GgufFile:
    """An open file; tensors are read from disk as they are asked for.

    Attributes:
        path: Where it lies.
        fields: Its metadata by key.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            UsageError: The package `gguf` is not installed.
            ModelError: The file is damaged, or holds another architecture than Llama.
        """
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise UsageError("needs the package gguf", fix="pip install gguf") from error
        self.path = path
        try:
            reader = GGUFReader(path)
            self.fields = {key: field.contents() for key, field in reader.fields.items()}
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise ModelError(f"can't be read as GGUF: {error}", where=str(path)) from error
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        found = self.fields.get("general.architecture")
        if found != ARCHITECTURE:
            raise ModelError(f"holds {found!r}, not {ARCHITECTURE!r}", where=str(path))

    def field(self, key: str) -> Any:
        """Return one entry of the metadata.

        Raises:
            ModelError: There is none of that key.
        """
        if key not in self.fields:
            raise ModelError(f"has no metadata {key!r}", where=str(self.path))
        return self.fields[key]

    def config(self) -> Config:
        """Return the decoder's sizes."""
        keys = {
            "layers": "block_count",
            "width": "embedding_length",
            "heads": "attention.head_count",
            "kv_heads": "attention.head_count_kv",
            "hidden": "feed_forward_length",
            "vocabulary": "vocab_size",
            "context": "context_length",
            "epsilon": "attention.layer_norm_rms_epsilon",
            "rope_base": "rope.freq_base",
        }
        return Config(**{name: self.field(f"{ARCHITECTURE}.{key}") for name, key in keys.items()})

    def weights(self) -> dict[str, Array]:
        """Return all weights in float32, as `llama.shapes` names and lays them out."""
        config = self.config()
        found = {"embed": self._tensor("token_embd"), "norm": self._tensor("output_norm")}
        # Llama files without a head of their own share the embedding's table.
        head = self._tensor("output") if "output.weight" in self._tensors else found["embed"]
        found["head"] = np.ascontiguousarray(head.T)
        heads = {"attn.q": config.heads, "attn.k": config.kv_heads}
        for layer in range(config.layers):
            for ours, theirs in _LAYER.items():
                weight = self._tensor(f"blk.{layer}.{theirs}")
                if ours in heads:
                    weight = _halves(weight, heads[ours])
                found[f"layers.{layer}.{ours}"] = np.ascontiguousarray(weight.T)
        return found

    def _tensor(self, name: str) -> Array:
        from gguf import dequantize

        tensor = self._tensors.get(f"{name}.weight")
        if tensor is None:
            raise ModelError(f"has no tensor '{name}.weight'", where=str(self.path))
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)


def _halves(weight: Array, heads: int) -> Array:
    """Undo llama.cpp's order of query and key rows, in which rotary pairs are neighbours.

    Args:
        weight: [heads * size, inputs], rows 2i and 2i + 1 of a head turned against each other.
        heads: Number of heads.

    Returns:
        The same rows with i and i + size / 2 turned against each other.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
