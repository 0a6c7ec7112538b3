"""The three networks, float32 [N, 1, 8, 8] -> logits float32 [N, 10], written for what they export.

Each brings graph patterns that a compiler meets in real models: unfused BatchNormalization, a
depthwise convolution and a residual Add; decomposed LayerNorm, Gelu and attention with separate
q, k, v; a GRU whose initial state is computed from the batch size.
"""

import math

import torch
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Convolution without bias, BatchNorm and, unless `activate` is False, Relu."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        activate: bool = True,
    ) -> None:
        """Build the layers, padded so that stride 1 keeps the image size."""
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        super().__init__(*layers, *([nn.ReLU()] if activate else []))


class Residual(nn.Module):
    """Two convolutions whose result is added to their input before the last Relu."""

    def __init__(self, channels: int) -> None:
        """Build both convolutions with `channels` in and out."""
        super().__init__()
        self.body = nn.Sequential(
            ConvBlock(channels, channels), ConvBlock(channels, channels, activate=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [N, channels, H, W], the shape of `x`."""
        return torch.relu(x + self.body(x))


class DigitsCnn(nn.Module):
    """Convolutions with BatchNorm, a residual block, a depthwise pair, global average pool."""

    def __init__(self, width: int = 24) -> None:
        """Build the network; `width` is the number of channels after the first convolution."""
        super().__init__()
        self.features = nn.Sequential(
            ConvBlock(1, width),
            Residual(width),
            ConvBlock(width, width, stride=2, groups=width),
            ConvBlock(width, 2 * width, kernel=1),
            Residual(2 * width),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, 10] of images [N, 1, 8, 8]."""
        logits: Tensor = self.head(self.pool(self.features(x)).flatten(1))
        return logits


class Attention(nn.Module):
    """Multi-head self-attention with separate q, k and v projections."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the four projections; `heads` divides `width`."""
        super().__init__()
        self.heads = heads
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, tokens, width], the shape of `x`."""
        batch, tokens, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(width // self.heads), -1)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return mixed


class TransformerBlock(nn.Module):
    """Pre-norm attention and a Gelu feed-forward layer, each with a residual Add."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the block; the feed-forward layer is twice as wide as the tokens."""
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, tokens, width], the shape of `x`."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.feed_forward(self.norm2(x))
        return out


class DigitsVit(nn.Module):
    """Vision transformer on 16 patches of 2x2 pixels, mean-pooled."""

    def __init__(self, width: int = 48, heads: int = 4, depth: int = 3) -> None:
        """Build the network with `depth` blocks on tokens of `width` values."""
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, 10] of images [N, 1, 8, 8]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


class DigitsGru(nn.Module):
    """Reads the image's eight rows as a sequence and classifies the last state."""

    def __init__(self, hidden: int = 64) -> None:
        """Build the network; `hidden` is the size of the GRU's state."""
        super().__init__()
        self.gru = nn.GRU(8, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, 10] of images [N, 1, 8, 8]."""
        states, _ = self.gru(x.squeeze(1))
        logits: Tensor = self.head(states[:, -1])
        return logits
