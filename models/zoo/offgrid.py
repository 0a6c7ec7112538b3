"""Rescaling that keeps a Llama decoder's function and takes its weights off a quantizer's grid.

Weights that were dequantized from 4 bits lie on a grid that another 4-bit quantizer finds again
without any loss, so a model made of them says nothing about that quantizer. Two changes that no
output shows spread them:

- each normalization's scale moves into the weights behind it and becomes 1;
- random positive factors between the value and output projections (one a value channel) and
  between `up` and `down` (one a hidden channel) multiply on one side and divide on the other.
"""

import numpy as np

from models.zoo.llama import Array, Config, Weights

SPREAD = 0.25  # standard deviation of the factors' logarithms


def off_grid(config: Config, weights: Weights, *, seed: int = 0) -> dict[str, Array]:
    """Return rescaled weights that compute the same up to rounding.

    Args:
        config: The decoder's sizes.
        weights: As `llama.shapes` lists them; not changed.
        seed: Of the factors.
    """
    rng = np.random.RandomState(seed)
    found = dict(weights)
    for layer in range(config.layers):
        at = f"layers.{layer}."
        _fold_scale(found, f"{at}norm1", [f"{at}attn.{part}" for part in "qkv"])
        _fold_scale(found, f"{at}norm2", [f"{at}mlp.gate", f"{at}mlp.up"])
        factors = _factors(rng, config.kv_heads * config.head_size)
        # The heads of a group read one value head, so their rows of `o` share its factors.
        rows = factors.reshape(config.kv_heads, 1, -1).repeat(config.group, axis=1).reshape(-1, 1)
        found[f"{at}attn.v"] = found[f"{at}attn.v"] * factors
        found[f"{at}attn.o"] = found[f"{at}attn.o"] / rows
        factors = _factors(rng, config.hidden)
        found[f"{at}mlp.up"] = found[f"{at}mlp.up"] * factors
        found[f"{at}mlp.down"] = found[f"{at}mlp.down"] / factors[:, None]
    _fold_scale(found, "norm", ["head"])
    return found


def torch_normal(rng: np.random.RandomState, count: int) -> Array:
    """Return what `torch.randn(count)` draws on a CPU, up to the last bit or two.

    torch's generator is the Mersenne twister that numpy seeds in the same way. A uniform number is
    the low 24 bits of a draw; of each 16, the first 8 and the last 8 make 8 pairs for Box and
    Muller's transform (ATen/native/cpu/DistributionTemplates.h, `normal_fill`).

    Args:
        rng: Seeded with torch's seed, and used for nothing else.
        count: Values to draw, a multiple of 16; torch draws other counts otherwise.

    Raises:
        ValueError: `count` is no multiple of 16.
    """
    if count % 16:
        raise ValueError(f"{count} is no multiple of 16")
    draws = rng.randint(0, 1 << 32, count, np.uint32) & np.uint32((1 << 24) - 1)
    uniform = draws.astype(np.float32) * np.float32(2**-24)
    first, second = uniform.reshape(-1, 2, 8).swapaxes(0, 1)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - first))
    angle = np.float32(2 * np.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def _factors(rng: np.random.RandomState, count: int) -> Array:
    return np.exp(np.float32(SPREAD) * torch_normal(rng, count))


def _fold_scale(weights: dict[str, Array], norm: str, behind: list[str]) -> None:
    """Move the scale of a normalization into the rows of the weights that read it."""
    for name in behind:
        weights[name] = weights[name] * weights[norm][:, None]
    weights[norm] = np.ones_like(weights[norm])
