"""Models before and after, as text that a reader can check by hand: tests/golden/fusions."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.printer
import pytest
from folds import constants
from harness import apply, check_fires

from qgraph.passes.cleanup.drop_dead import DropDead
from qgraph.passes.fusions.conv_batchnorm import ConvBatchNorm
from qgraph.passes.fusions.conv_scale import ConvScale
from qgraph.passes.fusions.horizontal_matmul import HorizontalMatMul
from qgraph.passes.fusions.linear_batchnorm import LinearBatchNorm
from qgraph.passes.fusions.matmul_add_gemm import MatMulAddGemm
from qgraph.passes.fusions.pad_conv import PadConv
from qgraph.pipeline import Pass

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "fusions"
PASSES: list[Pass] = [
    ConvBatchNorm(),
    ConvScale(),
    PadConv(),
    MatMulAddGemm(),
    LinearBatchNorm(),
    HorizontalMatMul(max_rows=4),
]


def read(name: str, which: str) -> onnx.ModelProto:
    proto = onnx.parser.parse_model((GOLDEN / f"{name}.{which}.txt").read_text())
    onnx.checker.check_model(proto, full_check=True)
    return proto


def structure(proto: onnx.ModelProto) -> list[object]:
    """Nodes with sorted attributes; constants and inner values numbered as they first appear."""
    fixed = {v.name for v in [*proto.graph.input, *proto.graph.output]} | {""}
    numbers: dict[str, str] = {name: name for name in fixed}
    lines: list[object] = []
    for node in proto.graph.node:
        for name in [*node.input, *node.output]:
            numbers.setdefault(name, f"#{len(numbers)}")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        names = ([numbers[n] for n in node.input], [numbers[n] for n in node.output])
        lines.append((node.op_type, sorted(attributes.items()), *names))
    return lines


def in_order(proto: onnx.ModelProto) -> list[np.ndarray]:
    """Constants in the order in which nodes read them."""
    table = constants(proto)
    read = dict.fromkeys(n for node in proto.graph.node for n in node.input if n in table)
    assert set(read) == set(table), "constants that nobody reads"
    return [table[name] for name in read]


@pytest.mark.parametrize("which", PASSES, ids=lambda each: each.name)
def test_before_gives_after(which: Pass) -> None:
    before, after = read(which.name, "before"), read(which.name, "after")
    # A fusion leaves the view of a weight behind that it no longer reads.
    got, _, _ = apply(DropDead(), check_fires(which, before))
    assert structure(got) == structure(after), onnx.printer.to_text(got)
    pairs = zip(in_order(got), in_order(after), strict=True)
    for have, want in pairs:
        assert have.dtype == want.dtype and have.shape == want.shape
        np.testing.assert_allclose(have, want, rtol=1e-6)


def test_every_golden_file_is_used() -> None:
    names = {path.name.split(".")[0] for path in GOLDEN.iterdir()}
    assert names == {each.name for each in PASSES}
