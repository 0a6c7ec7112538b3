"""Targets: what hardware and engine accept, as data. The planner executes these rules."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qgraph.encoding import Spec
from qgraph.registry import by_name, pick

Role = Literal["activation", "weight", "bias", "other"]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-dynamic")


@dataclass(frozen=True)
class OpRule:
    """How one operator is quantized.

    Attributes:
        op: Operator of the ONNX standard.
        roles: What each input is; the last role repeats for further inputs.
        output: `quantized`: the engine runs it in integers only if its result is quantized too.
            `float`: the result may stay in float, and is quantized only if a reader needs it.
            `same`: codes pass through; inputs and output share one encoding.
        starts: Whether it is quantized on its own account. False: only where an input comes
            quantized already, because a Q/DQ pair for its sake alone would cost more than it wins.
        source: Where the rule comes from.
    """

    op: str
    roles: tuple[Role, ...]
    output: Literal["quantized", "float", "same"]
    starts: bool = True
    source: str = ""

    def role(self, index: int) -> Role:
        """Role of input `index`."""
        return self.roles[min(index, len(self.roles) - 1)]


@dataclass(frozen=True)
class Target:
    """What a piece of hardware with its engines accepts.

    Attributes:
        name: Name for `--target`.
        summary: One line for `qgraph targets`.
        engines: Backends that can run it, by name; the fastest on the user's model is chosen.
        precisions: What `--precision` may be.
        default_precision: Where neither user nor recipe says one.
        activation: Wish for activations.
        weight: Wish for weights; its axis is set per operator to the output channels.
        rules: One row an operator.
        absorbs: Activation functions that vanish into the range of the encoding behind them.
        left_float: Operators that stay in float, and why.
        half_ops: By `fp16` and `bf16`, operators without a kernel in that type, or None where
            the engines compute nothing in it and only weights are stored in it.
    """

    name: str
    summary: str
    engines: tuple[str, ...]
    precisions: tuple[str, ...]
    default_precision: str
    activation: Spec
    weight: Spec
    rules: tuple[OpRule, ...]
    absorbs: tuple[str, ...] = ()
    left_float: Mapping[str, str] = field(default_factory=dict)
    half_ops: Mapping[str, frozenset[str] | None] = field(default_factory=dict)

    def rule(self, op: str) -> OpRule | None:
        """Return the row for `op`, or None."""
        return next((rule for rule in self.rules if rule.op == op), None)


def targets() -> dict[str, Target]:
    """Return every registered target by name."""
    from qgraph.targets import TARGETS

    return by_name(TARGETS)


def target(name: str) -> Target:
    """Return a target by name.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    return pick("target", name, targets())
