"""A wrong fold that the harness must catch: if these pass unnoticed, no other test here counts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from folds import norm_parameters, normal
from harness import check_fires, check_stays, model

from qgraph.graph import Graph, Node, Value
from qgraph.passes.fusions import conv_batchnorm
from qgraph.passes.fusions._affine import Affine, batchnorm
from qgraph.passes.fusions.conv_batchnorm import ConvBatchNorm
from qgraph.passes.fusions.conv_scale import ConvScale
from qgraph.pattern import Match, Pattern, const, op, var
from qgraph.pipeline import Fusion, Reject

TEXT = """g (float[2,4,10,9] x) => (float[a,b,c,d] z) {
    y = Conv (x, weight, bias)
    z = BatchNormalization <epsilon = 0.001> (y, scale, shift, mean, variance) }"""
PROTO = model(TEXT, {"weight": normal(1, 8, 4, 3, 3), "bias": normal(2, 8), **norm_parameters(8)})


def without_epsilon(graph: Graph, node: Node, affine: Affine) -> Affine:
    variance = graph.array(node.inputs[4])
    scale, shift = graph.array(node.inputs[1]), graph.array(node.inputs[2])
    mean = graph.array(node.inputs[3])
    assert variance is not None and scale is not None and mean is not None and shift is not None
    factor = scale.astype(np.float64) / np.sqrt(variance)
    return Affine(factor, shift - mean * factor)


def without_mean(graph: Graph, node: Node, affine: Affine) -> Affine:
    shift = graph.array(node.inputs[2])
    assert shift is not None
    return Affine(affine.factor, shift.astype(np.float64))


def variance_not_deviation(graph: Graph, node: Node, affine: Affine) -> Affine:
    variance = graph.array(node.inputs[4])
    assert variance is not None
    return Affine(affine.factor / np.sqrt(variance), affine.shift)


def channels_turned(graph: Graph, node: Node, affine: Affine) -> Affine:
    return Affine(np.roll(affine.factor, 1), affine.shift)


def slightly_off(graph: Graph, node: Node, affine: Affine) -> Affine:
    return Affine(affine.factor * 1.001, affine.shift)


@pytest.mark.parametrize(
    "wrong",
    [without_epsilon, without_mean, variance_not_deviation, channels_turned, slightly_off],
)
def test_a_wrong_fold_is_caught(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Graph, Node, Affine], Affine]
) -> None:
    def planted(graph: Graph, node: Node, channels: int) -> Affine | Reject:
        right = batchnorm(graph, node, channels)
        return right if isinstance(right, Reject) else wrong(graph, node, right)

    check_fires(ConvBatchNorm(), PROTO)
    monkeypatch.setattr(conv_batchnorm, "batchnorm", planted)
    with pytest.raises(AssertionError, match="error"):
        check_fires(ConvBatchNorm(), PROTO)


@dataclass(frozen=True)
class InPlace(Fusion):
    """Scales the weight that another convolution reads too."""

    name: ClassVar[str] = "in_place"
    pattern: ClassVar[Pattern] = op.Mul(op.Conv(var("x"), const("weight"), bind="conv"), const("c"))

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        scaled = graph.constant("scaled", m.array("weight") * m.array("c").reshape(-1, 1, 1, 1))
        graph.replace(m.value("weight"), scaled)
        return m.node("conv").outputs[0]


def test_changing_a_shared_weight_is_caught() -> None:
    proto = model(
        """g (float[2,4,10,9] x) => (float[a,b,c1,d] z, float[e,f,g1,h] w) {
            y = Conv (x, weight)\n z = Mul (y, c)\n w = Conv (x, weight) }""",
        {"weight": normal(1, 8, 4, 3, 3), "c": normal(2, 8, 1, 1)},
    )
    check_fires(ConvScale(), proto)
    with pytest.raises(AssertionError, match="w: error"):
        check_fires(InPlace(), proto)


def test_a_fusion_that_does_not_fire_is_caught() -> None:
    with pytest.raises(AssertionError, match="did not fire"):
        check_fires(ConvScale(), PROTO)


def test_a_fusion_that_fires_where_it_must_not_is_caught() -> None:
    with pytest.raises(AssertionError, match="fired"):
        check_stays(ConvBatchNorm(), PROTO)


def test_a_missing_reason_is_caught() -> None:
    with pytest.raises(AssertionError, match="no refusal"):
        check_stays(ConvScale(), PROTO, "because")
