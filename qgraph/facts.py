"""What passes leave on a graph for later passes: one field a fact, None until a pass gives it."""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.encoding import Encoding, Spec
from qgraph.interface import Interface


@dataclass(eq=False)
class Unit:
    """Nodes that an engine runs as one kernel: an anchor with its bias, activation and residual.

    Attributes:
        kind: `conv`, `conv_transpose`, `linear` (Gemm, or MatMul by a constant), or `matmul`
            (two activations).
        anchor: The Conv, ConvTranspose, Gemm or MatMul node.
        bias: The Add of a constant that follows a MatMul, where there is one.
        activation: The node of the activation function that ends the unit, or None.
        residual: The Add that joins the unit with a shortcut, or None.
    """

    kind: str
    anchor: ir.Node
    bias: ir.Node | None = None
    activation: ir.Node | None = None
    residual: ir.Node | None = None

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The unit's nodes in the order in which they run."""
        chain = (self.anchor, self.bias, self.residual, self.activation)
        return tuple(node for node in chain if node is not None)

    @property
    def output(self) -> ir.Value:
        """The value that leaves the unit."""
        return self.nodes[-1].outputs[0]


@dataclass(eq=False)
class Attention:
    """One recognised attention block: softmax(q k^T * scale + mask) v.

    Attributes:
        query: Value that enters the first product, before scaling.
        key: Value that enters the first product, before its transpose.
        value: Value that enters the second product.
        scores: Node of the first product (q k^T).
        softmax: The Softmax node.
        context: Node of the second product.
        mask: What is added to (or subtracted from) the scores, or the condition of the Where that
            hides some; of several, the one next to the Softmax. None without a mask.
        causal: Whether a mask hides later positions: a constant lower-triangular one, or one
            computed with Trilu or by comparing positions.
        rotary: Whether q and k pass through a rotary position embedding.
        query_heads: Number of query heads where the shapes say so, else None.
        key_heads: Number of key/value heads; fewer than `query_heads` for grouped heads.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    scores: ir.Node
    softmax: ir.Node
    context: ir.Node
    mask: ir.Value | None = None
    causal: bool = False
    rotary: bool = False
    query_heads: int | None = None
    key_heads: int | None = None


@dataclass(frozen=True)
class Placement:
    """The plan's wish for one value that will be quantized.

    Attributes:
        spec: What the target wants for it.
        group: Values with the same group share one encoding.
        reason: Why it is quantized.
        known: Its range where that is known without data, such as that of a Softmax.
    """

    spec: Spec
    group: str
    reason: str
    known: tuple[float, float] | None = None


@dataclass
class Plan:
    """Which values are quantized and how, and why every other float value is not.

    Attributes:
        activations: By value name.
        weights: By (node name, input index).
        biases: By (node name, input index).
        floats: By value name, the reason it stays in float.
        nodes: By node name, (precision, reason): what `qgraph explain` prints.
        reads: (node name, input index) of every input that reads codes.
        writes: Names of values whose producer hands out codes, so that all readers get them.
        absorbed: By the name of a Relu or Clip, its bounds; its node vanishes where the encoding
            behind it can't represent anything outside of them.
        recoded: (node name, input index) of inputs that read other codes than the value's own.
    """

    activations: dict[str, Placement] = field(default_factory=dict)
    weights: dict[tuple[str, int], Placement] = field(default_factory=dict)
    biases: dict[tuple[str, int], Placement] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, tuple[str, str]] = field(default_factory=dict)
    reads: set[tuple[str, int]] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    absorbed: dict[str, tuple[float, float]] = field(default_factory=dict)
    recoded: dict[tuple[str, int], Encoding] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A constant in integers.

    Attributes:
        codes: Integer codes, unpacked, in the weight's own shape.
        encoding: Their encoding.
        loss: Squared error against the float weight (weighted by the Gram matrix where one was
            used), relative to the weight's own squared size.
    """

    codes: NDArray[np.generic]
    encoding: Encoding
    loss: float


@dataclass
class Facts:
    """Every fact a pass may need or give; the field names are the facts' names.

    Attributes:
        units: Fused units, in graph order.
        attention: Recognised attention blocks, in graph order.
        plan: What will be quantized.
        ranges: By value name, (low, high) observed by calibration.
        encodings: By value name, the encoding of each quantized activation.
        weights: By (node name, input index), each quantized weight.
        quantized: True once Q/DQ (or another quantized form) stands in the graph.
        io: Inputs and outputs that take or hand out something else than the original's.
    """

    units: list[Unit] | None = None
    attention: list[Attention] | None = None
    plan: Plan | None = None
    ranges: dict[str, tuple[float, float]] | None = None
    encodings: dict[str, Encoding] | None = None
    weights: dict[tuple[str, int], QuantizedWeight] | None = None
    quantized: bool | None = None
    io: Interface | None = None

    def present(self) -> set[str]:
        """Names of the facts that some pass has given."""
        return {f.name for f in fields(self) if getattr(self, f.name) is not None}

    def drop(self, name: str) -> None:
        """Forget one fact, as a pass that breaks it must."""
        setattr(self, name, None)

    def get(self, name: str) -> Any:
        """Return one fact by its name."""
        return getattr(self, name)


FACTS = frozenset(f.name for f in fields(Facts))
