"""Targets: what hardware and engine accept, as data. The planner executes these rules."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from qgraph.encoding import FLOATS, Spec
from qgraph.errors import UsageError, unknown_name
from qgraph.registry import by_name, pick
from qgraph.targets.contrib import Contributed

Role = Literal["activation", "weight", "bias", "other"]

PRECISIONS = (
    *("fp32", "fp16", "bf16", "fp8", "int8", "int8-dynamic", "w8a16"),
    *("int8-weights", "int4", "int3", "int2"),
)
# Weights in few bits, activations in float.
WEIGHT_ONLY = {"int8-weights": 8, "int4": 4, "int3": 3, "int2": 2}


@dataclass(frozen=True)
class OpRule:
    """How one operator is quantized.

    Attributes:
        op: Operator of the ONNX standard.
        roles: What each input is; the last role repeats for further inputs. A bias is quantized to
            int32; one that stays in float is `other`.
        output: `quantized`: the engine runs it in integers only if its result is quantized too.
            `float`: the result may stay in float, and is quantized only if a reader needs it.
            `same`: codes pass through; inputs and output share one encoding.
        starts: Whether it is quantized on its own account. False: only where an input comes
            quantized already, because a Q/DQ pair for its sake alone would cost more than it wins.
        products: Whether two activations may be multiplied; both then have the role `activation`.
        least: Least depth K and width N of a matrix product that integers (or 8-bit floats) make
            faster; of a convolution with more than 1, least channels on both sides of a group.
        vectors: Whether the product of a single row by a matrix is one.
        source: Where the rule comes from.
    """

    op: str
    roles: tuple[Role, ...]
    output: Literal["quantized", "float", "same"]
    starts: bool = True
    products: bool = False
    least: int = 1
    vectors: bool = True
    source: str = ""

    def role(self, index: int) -> Role:
        """Role of input `index`."""
        return self.roles[min(index, len(self.roles) - 1)]


@dataclass(frozen=True)
class WeightOnlyRules:
    """Which weights in few bits a target multiplies float activations by.

    Attributes:
        forms: By the class of a quantized weight, or class and bits (`QuantizedWeight8`) where
            widths differ, the forms that execute it, best first; see `qgraph.passes.weight_forms`.
            Those of `Table` gather rows.
        bits: Widths of uniform codes.
        blocks: Group lengths; empty for any. 0 stands for whole columns.
        symmetric: Whether zero points must be in the middle.
        negative_scales: Whether scales may be below 0, which gives symmetric codes a choice.
        whole_blocks: Whether a column's last group must be as long as the others.
        accuracy_level: What MatMulNBits computes in where the recipe does not say: 0 floats, 4 data
            rounded to int8.
        source: Where the rules come from.
    """

    forms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bits: tuple[int, ...] = (2, 3, 4, 8)
    blocks: tuple[int, ...] = ()
    symmetric: bool = False
    negative_scales: bool = True
    whole_blocks: bool = False
    accuracy_level: int = 0
    source: str = ""

    def forms_for(self, kind: str, bits: int | None = None) -> tuple[str, ...]:
        """Return the forms that execute a class of quantized weights."""
        return self.forms.get(f"{kind}{bits}", self.forms.get(kind, ()))

    def block_for(self, rows: int, group: int) -> int | None:
        """Return the group length for columns of so many rows: the one asked for, if it fits.

        Where the last group may not be shorter, it is the longest of the target's lengths below
        it that divides the rows; None if there is none.
        """
        if not self.whole_blocks or not group or rows % group == 0:
            return group
        shorter = (block for block in self.blocks if 0 < block < group and rows % block == 0)
        return max(shorter, default=None)

    def check(self, method: str, uniform: bool, bits: int, group: int, symmetric: bool) -> None:
        """Refuse what the target can't execute.

        Raises:
            UsageError: With what it can.
        """
        if not self.forms:
            raise UsageError("the target has no weight-only kernels", fix="choose another target")
        if not uniform:
            if not set(self.forms) - {"QuantizedWeight", "Table"}:
                raise UsageError(f"the target does not execute {method}", fix="use gptq or rtn")
            return
        if bits not in self.bits:
            raise UsageError(
                f"the target has no {bits}-bit weights", fix=f"use {_listed(self.bits)} bits"
            )
        if self.blocks and group not in self.blocks:
            raise UsageError(
                f"the target has no groups of {group} weights",
                fix=f"use {_listed(self.blocks)}" + (" (0: whole columns)" * (0 in self.blocks)),
            )
        if self.symmetric and not symmetric:
            raise UsageError("the target takes symmetric weights only", fix="pass --symmetric")


@dataclass(frozen=True)
class Float8Rules:
    """Which products by constants a target multiplies in float8e4m3fn by a kernel of its own.

    Attributes:
        kernel: The pass that writes the kernel.
        multiple: What depth K and width N must be multiples of.
        costs: Name of the measured times of `fp8` and of the target's float type; see
            `qgraph.costs`.
        source: Where the rules come from.
    """

    kernel: str
    multiple: int = 16
    costs: str = ""
    source: str = ""


# Where no target is named: the form that every engine reads.
ANYTHING = WeightOnlyRules({"QuantizedWeight": ("dequantize_linear",), "Table": ("gather_plain",)})


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
        placement: `nodes`: every quantized operator stands between DequantizeLinear and
            QuantizeLinear. `units`: only what enters a fused unit (a convolution or matrix product
            with what runs in its kernel) is quantized; results are not.
        activations: By precision, the wish for activations where it is another one.
        weights: By precision, the wish for weights where it is another one.
        rows: By precision, the rules where they are others.
        absorbs: Activation functions that vanish into the range of the encoding behind them.
        fused: With `units`, elementwise operators that run in the kernel in front of them.
        ranges: By operator, the range of its result, where it is known without data.
        left_float: Operators that stay in float, and why.
        half_ops: By `fp16` and `bf16`, operators without a kernel in that type, or None where
            the engines compute nothing in it and only weights are stored in it.
        half_codes: Whether its integer kernels take scales and give results in half precision.
        lowering: Rewrites that spell a float model as its engines take it, by pass name.
        fixed_shapes: Whether it takes no dynamic axes.
        batch: The only length that the batch axis may have; None for any.
        memory: Bytes of model beyond which it slows down or fails; None for no limit.
        weight_only: Which weights in few bits it multiplies float activations by.
        float8: Which products it multiplies in float8 by a kernel of its own; None: fp8 is Q/DQ.
        float_type: What else those models compute in: `fp16`, `bf16`, or empty for their own type.
        contributed: What all of its engines execute beside ONNX's operators; every compile for it
            is written with them.
        own: By engine, what it alone executes beside them. It gets a model of its own, which becomes
            the artifact's if it is the fastest.
        costs: Name of the measured times of its products; see `qgraph.costs`.
        refused: Why it lacks precisions that one might expect of it, or builds others.
        instead: By precision that it can build but should not, what is built unless that is forced.
        instead_batch: The same where the number of rows that layers multiply at a time is known.
        settings: By precision, `pass.option=value` lines that suit it better than what the recipes
            that ship with qgraph say; the user's own recipes and settings win.
        no_engine: Where there are no engines: why qgraph can't run it.
        devices: By variant, empty for none, the device that a search estimates times for where no engine
            runs; see `qgraph.search.devices`.
        variants: Kinds of this hardware by what follows `:` in the name, such as a compute
            capability, each with the number formats that it computes in. A variant has those of
            `precisions` that are among them; qgraph need not compile to all formats.
    """

    name: str
    summary: str
    engines: tuple[str, ...]
    precisions: tuple[str, ...]
    default_precision: str
    activation: Spec
    weight: Spec
    rules: tuple[OpRule, ...]
    placement: Literal["nodes", "units"] = "nodes"
    activations: Mapping[str, Spec] = field(default_factory=dict)
    weights: Mapping[str, Spec] = field(default_factory=dict)
    rows: Mapping[str, tuple[OpRule, ...]] = field(default_factory=dict)
    absorbs: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    left_float: Mapping[str, str] = field(default_factory=dict)
    half_ops: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    half_codes: bool = False
    lowering: tuple[str, ...] = ()
    fixed_shapes: bool = False
    batch: int | None = None
    memory: int | None = None
    weight_only: WeightOnlyRules = WeightOnlyRules()
    float8: Float8Rules | None = None
    float_type: Literal["", "fp16", "bf16"] = ""
    contributed: Contributed | None = None
    own: Mapping[str, Contributed] = field(default_factory=dict)
    costs: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)
    instead_batch: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    no_engine: str = ""
    devices: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse wishes that no pass executes.

        Raises:
            UsageError: Activations with a scale a channel, which no engine here multiplies.
        """
        for spec in (self.activation, *self.activations.values()):
            if spec.axis is not None:
                raise UsageError(
                    f"target {self.name!r} wants a scale for each channel of an activation",
                    fix="use axis=None: integer products need one scale a tensor",
                )

    @property
    def variant(self) -> str:
        """Which of its variants this is, such as a compute capability; empty for all of them."""
        return self.name.partition(":")[2]

    @property
    def device(self) -> str:
        """Name of the device that times are estimated for; empty where none is known."""
        return self.devices.get(self.variant, "")

    def rule(self, op: str) -> OpRule | None:
        """Return the row for `op`, or None."""
        return next((rule for rule in self.rules if rule.op == op), None)

    def activation_spec(self, precision: str) -> Spec:
        """Return the wish for activations at one of the precisions."""
        return self.activations.get(precision, self.activation)

    def at(self, precision: str) -> "Target":
        """Return the target with the wishes and rules of one of its precisions."""
        return replace(
            self,
            activation=self.activation_spec(precision),
            weight=self.weights.get(precision, self.weight),
            rules=self.rows.get(precision, self.rules),
        )

    @property
    def numbers(self) -> str:
        """What its quantized operators compute in, for people."""
        return "float8" if self.activation.dtype in FLOATS else "integers"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def targets() -> dict[str, Target]:
    """Return every registered target by name."""
    from qgraph.targets import TARGETS

    return by_name(TARGETS)


def target(name: str) -> Target:
    """Return a target by name, or one variant of it by `name:variant`.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    family, colon, variant = name.partition(":")
    found = pick("target", family, targets())
    if not colon:
        return found
    if not found.variants:
        raise UsageError(f"target {family!r} has no variants", fix=f"write {family}")
    if variant not in found.variants:
        raise unknown_name(f"variant of {family}", variant, found.variants)
    formats = found.variants[variant]
    return replace(found, name=name, precisions=tuple(p for p in found.precisions if p in formats))
