"""What an engine really ran, layer by layer, beside what was planned for the model's nodes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from qgraph.runtime.backend import ExecutedOp, Session

_REFORMATS = ("reformat", "reformatting copynode")
# Kernels of onnxruntime that only change a tensor's type, place or layout.
_ORT_REFORMATS = frozenset(
    {"Cast", "QuantizeLinear", "DequantizeLinear", "MemcpyToHost", "MemcpyFromHost", "Transpose",
     "ReorderInput", "ReorderOutput"}
)  # fmt: skip
_NARROW = ("int2", "int3", "int4", "fp4", "fp8", "int8")
# Kernels that read weights in few bits; their types of storage do not say in how many.
_FEW_BITS = frozenset({"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"})
_SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8", "int8": "int8"}


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name: The engine's name for it.
        kind: Its type, such as `CaskConvolution` or `Reformat`.
        nodes: The model's nodes that it runs; several are fused.
        reads: Element types of its inputs, such as `int8`.
        writes: Element types of its outputs.
        tactic: Name of its kernel, in onnxruntime of its provider; empty where the engine hides it.
        time_us: Microseconds a run; None where not measured.
    """

    name: str
    kind: str = ""
    nodes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    tactic: str = ""
    time_us: float | None = None

    @property
    def reformats(self) -> bool:
        """Whether it only changes the layout or type of a tensor."""
        return (
            self.kind in _ORT_REFORMATS
            or self.kind.lower() in _REFORMATS
            or self.name.lower().startswith(_REFORMATS)
        )

    @property
    def fused(self) -> bool:
        """Whether it runs several nodes in one kernel."""
        return len(self.nodes) > 1


@dataclass(frozen=True)
class Mapped:
    """A layer beside what was planned for its nodes.

    Attributes:
        layer: The layer.
        planned: Precision that the plan has for its nodes: the narrowest of them; empty if none.
        as_planned: Whether it reads that precision; True where nothing narrower than the
            engine's float types was planned.
    """

    layer: Layer
    planned: str
    as_planned: bool


def map_layers(layers: Iterable[Layer], plan: Mapping[str, str]) -> list[Mapped]:
    """Put layers beside the plan, those that did not run as planned first, then the slowest.

    Args:
        layers: Of an engine.
        plan: By node name, its precision, as explain.json has them.
    """
    mapped = [_mapped(layer, plan) for layer in layers]
    return sorted(mapped, key=lambda each: (each.as_planned, -(each.layer.time_us or 0.0)))


def _mapped(layer: Layer, plan: Mapping[str, str]) -> Mapped:
    wanted = {plan[node] for node in layer.nodes if node in plan}
    narrow = [name for name in _NARROW if name in wanted]
    if not narrow or layer.reformats or not layer.reads:
        return Mapped(layer, next(iter(sorted(wanted)), ""), True)
    return Mapped(layer, narrow[0], narrow[0] in layer.reads or layer.kind in _FEW_BITS)


@runtime_checkable
class Layered(Protocol):
    """A session whose engine tells its layers after a run."""

    def layers(self) -> list[Layer]:
        """Return them, with times where the session profiles."""
        ...


def layers_of(
    session: Session, feeds: Mapping[str, Any], names: Iterable[str], runs: int = 3
) -> list[Layer]:
    """Run a session that profiles, and return what ran.

    Args:
        session: Opened with `profile`.
        feeds: One sample.
        names: The model's nodes.
        runs: Runs to take the median time of.

    Raises:
        EngineError: The run fails.
    """
    if isinstance(session, Layered):
        for _ in range(runs):
            session.run(feeds)
        return session.layers()
    known = frozenset(names)
    return [_ran(op, known) for op in once(session.profile(feeds, runs))]


def once(ops: Sequence[ExecutedOp]) -> list[ExecutedOp]:
    """Leave out nodes that a provider was only given where the same ones were timed.

    ONNX Runtime lists what it gave to a provider apart from what its profile saw run; only of
    subgraphs that a provider compiled is nothing else known.
    """
    timed = {op.name for op in ops if op.time_us is not None}
    return [op for op in ops if op.time_us is not None or op.name not in timed]


def _ran(op: ExecutedOp, names: frozenset[str]) -> Layer:
    node = _node(op.name, names)
    return Layer(
        name=op.name,
        kind=op.op_type,
        nodes=(node,) if node else (),
        reads=_types(op.op_type, op.input_dtypes),
        writes=_types(op.op_type, op.output_dtypes),
        tactic=op.provider.removesuffix("ExecutionProvider"),
        time_us=op.time_us,
    )


def _types(kind: str, types: Iterable[str]) -> tuple[str, ...]:
    if kind == "GemmFloat8":
        types = ("fp8" if "float8" in name else name for name in types)
    return tuple(dict.fromkeys(_SHORT.get(name, name) for name in types))


def _node(name: str, names: frozenset[str]) -> str:
    """The model's node that a kernel was made of: onnxruntime appends to names what it did."""
    if name in names:
        return name
    cut = name
    while "_" in cut:
        cut = cut.rpartition("_")[0]
        if cut in names:
            return cut
    return ""
