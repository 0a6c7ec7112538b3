"""Helpers of the tests of fusions that fold constants: parameters, and convolution in float64."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

SPACE = {1: "10", 2: "10,9", 3: "6,5,4"}


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def norm_parameters(channels: int, seed: int = 7, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """scale, shift, mean and variance; small variances so that a forgotten epsilon shows."""
    rng = np.random.default_rng(seed)
    return {
        "scale": rng.uniform(0.5, 2, channels).astype(dtype),
        "shift": rng.standard_normal(channels).astype(dtype),
        "mean": rng.standard_normal(channels).astype(dtype),
        "variance": rng.uniform(0.01, 2, channels).astype(dtype),
    }


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


def only_node(proto: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    (node,) = [n for n in proto.graph.node if n.op_type == op_type]
    return node


def weights_of(proto: onnx.ModelProto, op_type: str) -> list[np.ndarray]:
    """Constant inputs behind the first one of the only node of this operator."""
    table = constants(proto)
    return [table[name] for name in only_node(proto, op_type).input[1:]]


def conv64(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | float = 0.0,
    *,
    groups: int = 1,
    transposed: bool = False,
    pad: Sequence[int] = (),
) -> np.ndarray:
    """Stride 1; x [B, C, ...]; pad begins then ends (Conv only). Tap by tap, in float64."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    rank = x.ndim - 2
    kernel = weight.shape[2:]
    if pad:
        width = [(0, 0), (0, 0), *zip(pad[:rank], pad[rank:], strict=True)]
        x = np.pad(x, width)
    size = x.shape[2:]
    out = [s + k - 1 if transposed else s - k + 1 for s, k in zip(size, kernel, strict=True)]
    inner = x.shape[1] // groups
    outer = weight.shape[1] if transposed else len(weight) // groups
    y = np.zeros((len(x), outer * groups, *out))
    for group in range(groups):
        xs = x[:, group * inner : (group + 1) * inner]
        ys = y[:, group * outer : (group + 1) * outer]
        block = inner if transposed else outer
        ws = weight[group * block : (group + 1) * block]
        for tap in itertools.product(*map(range, kernel)):
            w = ws[(..., *tap)]
            if transposed:
                place = tuple(slice(t, t + s) for t, s in zip(tap, size, strict=True))
                ys[(slice(None), slice(None), *place)] += np.einsum("bc...,co->bo...", xs, w)
            else:
                place = tuple(slice(t, t + o) for t, o in zip(tap, out, strict=True))
                cut = xs[(slice(None), slice(None), *place)]
                ys += np.einsum("bc...,oc->bo...", cut, w)
    return y + column(bias, rank)


def column(values: np.ndarray | float, rank: int) -> np.ndarray:
    """One value a channel, shaped to broadcast against [B, C, ...]."""
    values = np.asarray(values, np.float64)
    return values.reshape(-1, *[1] * rank) if values.ndim else values
