"""ResNet-50 with random weights, to measure speed with: `python -m models.zoo.resnet50 OUT.onnx`.

The architecture is that of He et al., Deep Residual Learning for Image Recognition, CVPR 2016,
table 1, with the stride on the 3x3 convolutions as torchvision has it: 53 convolutions without
bias, each followed by its own BatchNormalization node, 25,557,032 trainable parameters. Input
`input` float32 [n, 3, 224, 224], output `logits` float32 [n, 1000], opset 17.

Weights are He-initialised. A small random batch runs through the network in numpy while it is
built, and each BatchNormalization takes its mean and variance from it, as a training step would:
activations keep the scale of a trained network's. The answers mean nothing.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.float32]

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
EXPANSION = 4
CLASSES = 1000
EPSILON = 1e-5
SAMPLE = (16, 3, 64, 64)


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph: its name and what it holds for the sample, float32 [n, c, h, w]."""

    name: str
    sample: Array

    @property
    def channels(self) -> int:
        return int(self.sample.shape[1])


def _windows(x: Array, kernel: int, stride: int, fill: float) -> Array:
    """Return a view [n, c, h, w, kernel, kernel] of `x` padded by half a kernel with `fill`."""
    half = kernel // 2
    padded = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))
    return windows[:, :, ::stride, ::stride]


def _convolve(x: Array, weight: Array, stride: int) -> Array:
    windows = _windows(x, weight.shape[2], stride, 0)
    return np.tensordot(windows, weight, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


@dataclass
class _Builder:
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, array: npt.NDArray[np.floating]) -> str:
        """Add an initializer, stored as float32, and return its name."""
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add a node with one output that bears the node's name, and return that name."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv_bn(self, x: _Value, name: str, channels: int, kernel: int, stride: int = 1) -> _Value:
        """Add a convolution without bias and a BatchNormalization with the sample's moments."""
        shape = (channels, x.channels, kernel, kernel)
        deviation = np.float32(np.sqrt(2 / (x.channels * kernel * kernel)))
        weight = self.rng.standard_normal(shape, np.float32) * deviation
        conv = self.node(
            "Conv",
            [x.name, self.constant(f"{name}.conv.weight", weight)],
            f"{name}.conv",
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
        )
        sample = _convolve(x.sample, weight, stride)
        parts = {
            "weight": self.rng.uniform(0.5, 1.5, channels).astype(np.float32),
            "bias": self.rng.normal(0, 0.2, channels).astype(np.float32),
            "mean": sample.mean((0, 2, 3)),
            "var": sample.var((0, 2, 3)),
        }
        constants = [self.constant(f"{name}.bn.{part}", array) for part, array in parts.items()]
        out = self.node("BatchNormalization", [conv, *constants], f"{name}.bn", epsilon=EPSILON)
        scale = parts["weight"] / np.sqrt(parts["var"] + np.float32(EPSILON))
        shift = parts["bias"] - parts["mean"] * scale
        return _Value(out, sample * scale[:, None, None] + shift[:, None, None])

    def relu(self, x: _Value, name: str) -> _Value:
        """Add a Relu."""
        return _Value(self.node("Relu", [x.name], name), np.maximum(x.sample, 0))

    def max_pool(self, x: _Value, name: str) -> _Value:
        """Add a 3x3 max pooling with stride 2."""
        sizes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
        out = self.node("MaxPool", [x.name], name, **sizes)
        return _Value(out, _windows(x.sample, 3, 2, -np.inf).max((4, 5)))

    def bottleneck(self, x: _Value, name: str, width: int, stride: int) -> _Value:
        """Add 1x1, 3x3 and 1x1 convolutions and the shortcut around them."""
        y = self.relu(self.conv_bn(x, f"{name}.1", width, 1), f"{name}.1.relu")
        y = self.relu(self.conv_bn(y, f"{name}.2", width, 3, stride), f"{name}.2.relu")
        y = self.conv_bn(y, f"{name}.3", width * EXPANSION, 1)
        if x.channels != y.channels:
            x = self.conv_bn(x, f"{name}.shortcut", width * EXPANSION, 1, stride)
        out = self.node("Add", [y.name, x.name], f"{name}.add")
        return self.relu(_Value(out, y.sample + x.sample), f"{name}.relu")


def build(*, size: int = 224, seed: int = 0) -> onnx.ModelProto:
    """Return the model.

    Args:
        size: Height and width of the input, in pixels.
        seed: Of the weights; the same seed gives the same weights (BatchNorm moments up to rounding).
    """
    rng = np.random.default_rng(seed)
    builder = _Builder(rng)
    x = _Value("input", rng.standard_normal(SAMPLE, np.float32))
    x = builder.relu(builder.conv_bn(x, "stem", 64, 7, 2), "stem.relu")
    x = builder.max_pool(x, "stem.pool")
    for stage, (blocks, width) in enumerate(STAGES, 1):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 1 else 1
            x = builder.bottleneck(x, f"stage{stage}.{block}", width, stride)
    features = builder.node("GlobalAveragePool", [x.name], "pool")
    features = builder.node("Flatten", [features], "flatten")
    matrix = builder.rng.standard_normal((CLASSES, x.channels)) / np.sqrt(x.channels)
    head = [
        builder.constant("head.weight", matrix),
        builder.constant("head.bias", np.zeros(CLASSES)),
    ]
    builder.node("Gemm", [features, *head], "logits", transB=1)
    return _model(builder, size)


def _model(builder: _Builder, size: int) -> onnx.ModelProto:
    shape: list[str | int | None] = ["n", 3, size, size]
    graph = helper.make_graph(
        builder.nodes,
        "resnet50_random",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        builder.weights,
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="qgraph-zoo")


def main() -> None:
    """Write the model to the path given on the command line."""
    parser = argparse.ArgumentParser(description="Write a ResNet-50 with random weights.")
    parser.add_argument("output", type=Path, help="the ONNX file to write, 102 MB")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(build(seed=args.seed), args.output)


if __name__ == "__main__":
    main()
