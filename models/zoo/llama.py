"""Sizes, weights and rotary tables of decoders of the Llama family.

Touvron et al., LLaMA, 2023, section 2.2, with grouped keys and values (Ainslie et al., GQA, 2023).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Weights = Mapping[str, Array]
"""By name, as `shapes` lists them; matrices are [inputs, outputs]."""


@dataclass(frozen=True)
class Config:
    """Sizes of a decoder.

    Attributes:
        layers: Blocks of attention and feed-forward network.
        width: Length of a token's vector between blocks.
        heads: Query heads; they divide `width`.
        kv_heads: Key and value heads; they divide `heads`.
        hidden: Width inside the feed-forward network.
        vocabulary: Number of tokens.
        context: Positions that the rotary tables have.
        epsilon: What normalization adds to the mean square.
        rope_base: Base of the rotary embeddings' wavelengths.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    context: int
    epsilon: float = 1e-5
    rope_base: float = 10000.0

    @property
    def head_size(self) -> int:
        """Length of a head's vector."""
        return self.width // self.heads

    @property
    def group(self) -> int:
        """Query heads that share one key and value head."""
        return self.heads // self.kv_heads


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by name."""
    width, hidden = config.width, config.hidden
    narrow = config.kv_heads * config.head_size
    layer = {
        "norm1": (width,),
        "attn.q": (width, width),
        "attn.k": (width, narrow),
        "attn.v": (width, narrow),
        "attn.o": (width, width),
        "norm2": (width,),
        "mlp.gate": (width, hidden),
        "mlp.up": (width, hidden),
        "mlp.down": (hidden, width),
    }
    every = {f"layers.{n}.{k}": shape for n in range(config.layers) for k, shape in layer.items()}
    vocabulary = config.vocabulary
    return {"embed": (vocabulary, width), **every, "norm": (width,), "head": (width, vocabulary)}


def rope_tables(config: Config) -> dict[str, Array]:
    """Return `cos` and `sin` of the rotary embeddings, float32 [context, head_size / 2].

    Source: Su et al., RoFormer, 2021, section 3.2.2.
    """
    exponents = np.arange(0, config.head_size, 2) / config.head_size
    angles = np.outer(np.arange(config.context), config.rope_base**-exponents)
    return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
