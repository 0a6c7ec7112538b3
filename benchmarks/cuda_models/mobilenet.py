"""MobileNetV2 with random weights: Sandler et al., CVPR 2018, table 2, width 1."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Expansion, channels, repeats, stride of the first.
BLOCKS = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


@dataclass
class _Builder:
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv(
        self, x: str, ins: int, outs: int, kernel: int = 1, stride: int = 1, group: int = 1
    ) -> str:
        """A convolution with BatchNormalization, whose numbers stay near those that come in."""
        fan = ins // group * kernel * kernel
        weight = self.rng.standard_normal((outs, ins // group, kernel, kernel)) / np.sqrt(fan)
        sizes = {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": group}
        y = self.node("Conv", x, self.constant(weight), kernel_shape=[kernel] * 2, **sizes)
        scale, shift = self.rng.uniform(0.9, 1.3, outs), self.rng.normal(0.2, 0.2, outs)
        moments = [self.constant(v) for v in (scale, shift, np.zeros(outs), np.ones(outs))]
        return self.node("BatchNormalization", y, *moments)

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self.low, self.high)

    def __post_init__(self) -> None:
        self.low, self.high = self.constant(np.array(0.0)), self.constant(np.array(6.0))


def build(*, size: int = 224, seed: int = 0) -> onnx.ModelProto:
    """Return the model: `input` float32 [n, 3, size, size], `logits` float32 [n, 1000]."""
    b = _Builder(np.random.default_rng(seed))
    x, channels = b.relu6(b.conv("input", 3, 32, 3, 2)), 32
    for expansion, outs, repeats, first in BLOCKS:
        for index in range(repeats):
            stride, wide = first if index == 0 else 1, channels * expansion
            y = x if expansion == 1 else b.relu6(b.conv(x, channels, wide))
            y = b.relu6(b.conv(y, wide, wide, 3, stride, wide))
            y = b.conv(y, wide, outs)
            x = b.node("Add", x, y) if stride == 1 and channels == outs else y
            channels = outs
    x = b.node("GlobalAveragePool", b.relu6(b.conv(x, channels, 1280)))
    head = b.constant(b.rng.standard_normal((1000, 1280)) / np.sqrt(1280))
    b.nodes.append(helper.make_node("Flatten", [x], ["flat"], name="flat"))
    b.nodes.append(helper.make_node("Gemm", ["flat", head], ["logits"], name="logits", transB=1))
    graph = helper.make_graph(
        b.nodes,
        "mobilenet_v2_random",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1000])],
        b.weights,
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="qgraph")
