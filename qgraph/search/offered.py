"""Which ways a search offers its units: those that the target has and that win something on the whole model.

A whole model in a precision shows what it wins before any unit is looked at. What wins nothing there, such
as float16 on most CPUs, is not tried unit by unit, unless `--assign` asks for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from qgraph.facts import Plan
from qgraph.graph import Graph
from qgraph.passes.linear_to_matmul import LinearToMatMul
from qgraph.passes.weight_only.layers import Layer, find_layers
from qgraph.passes.weight_only.quantize import WeightOnly
from qgraph.pipeline import Stage
from qgraph.search import probes
from qgraph.search.float8_pairs import Pairs, find_pairs
from qgraph.search.goal import Goal
from qgraph.search.prepared import Prepared, clone
from qgraph.search.probes import WIDE_WRITTEN, Kind, Probe
from qgraph.search.proof import NO_GAIN
from qgraph.search.unit_parts import DTYPES
from qgraph.search.units import Unit
from qgraph.search.ways import CODES, DYNAMIC, FLOAT8, HALVES, PLAIN, WEIGHTS, WIDE, Way, weight_way
from qgraph.search.weights.kinds import kinds_of
from qgraph.search.whole import Round
from qgraph.search.wide import Encodings
from qgraph.target import ANYTHING, Target, WeightOnlyRules

# Fewer bits than 4 win bytes, and hardly time.
_FEWEST = 2


@dataclass(frozen=True, eq=False)
class Offered:
    """What units may compute in.

    Attributes:
        integers: Whether those that can be are offered integers.
        half: `fp16` or `bf16`, where that is offered; else empty.
        halves: Names of results that fit into it.
        layers: By name, linear layers whose weights alone may be in codes.
        weights: By name of the layer, bits and groups.
        float8: By name of a product, what its data is divided by in float8, where that is a kernel of its
            own.
        pairs: By name of a product, its Q/DQ in float8, where the target reads that.
        wide: By value name, encodings in 16 bits, where the target has them.
        dynamic: Names of products that may be in integers whose scales are found at run time.
        rules: Which weights the target executes.
    """

    integers: bool = True
    half: str = ""
    halves: frozenset[str] = frozenset()
    layers: Mapping[str, Layer] = field(default_factory=dict)
    weights: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    float8: Mapping[str, float] = field(default_factory=dict)
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    wide: Encodings = field(default_factory=dict)
    dynamic: frozenset[str] = frozenset()
    rules: WeightOnlyRules = ANYTHING

    def ways(self, unit: Unit) -> list[Way]:
        """Return the ways of a unit, float first."""
        made = (out.name for node in (*unit.nodes, *unit.tail) for out in node.outputs)
        halved = bool(self.half) and any(name in self.halves for name in made)
        rests = [PLAIN.rest, *([self.half] if halved else [])]
        found = [PLAIN, *([Way(self.half, self.half)] if halved else [])]
        if self.integers and unit.reads:
            found += [Way(CODES, rest) for rest in rests]
        if self.wide and unit.reads and all(v.name in self.wide for v in unit.reads.values()):
            found.append(Way(WIDE))
        for bits, group in self.weights.get(unit.name, ()):
            found += [weight_way(bits, group, rest) for rest in rests]
        if unit.name in self.dynamic:
            found += [Way(DYNAMIC, rest) for rest in rests]
        if unit.name in self.float8 or unit.name in self.pairs:
            found.append(Way(FLOAT8, rests[-1]))
        return found

    def probes(self) -> dict[Kind, Probe]:
        """Return what writes the errors of all ways, by kind."""
        found = dict(probes.INTEGERS) if self.integers else {}
        if self.half:
            found[self.half] = probes.half(DTYPES[self.half], self.halves)
        for bits, group in dict.fromkeys(pair for own in self.weights.values() for pair in own):
            names = [name for name, own in self.weights.items() if (bits, group) in own]
            kind = weight_way(bits, group).unit
            found[kind] = probes.weight(bits, group, self.rules, names)
        if self.wide:
            found |= {WIDE: probes.reads(self.wide), WIDE_WRITTEN: probes.writes(self.wide)}
        if self.dynamic:
            found[DYNAMIC] = probes.dynamic(self.dynamic)
        if self.float8:
            found[FLOAT8] = probes.cast_to_float8(self.float8)
        if self.pairs:
            found[FLOAT8] = probes.float8_pairs(self.pairs)
        return found


def offer(
    prepared: Prepared,
    target: Target,
    goal: Goal,
    first: Round,
    built: Mapping[str, tuple[Graph, list[Stage]]],
    wanted: Sequence[str] = (),
) -> Offered:
    """Decide what is offered.

    Args:
        prepared: The calibrated model.
        target: The target.
        goal: What is asked for.
        first: Whole models in all precisions, timed.
        built: By precision, whole models and what the passes did.
        wanted: The precisions that `--assign` gives single units.
    """

    def wins(precision: str) -> bool:
        if precision in wanted:
            return True
        base, timed = first.of("fp32"), first.of(precision)
        if base is None or timed is None:
            return False
        if goal.optimize == "latency":
            return timed.relative < NO_GAIN * base.relative
        return timed.bytes < NO_GAIN * base.bytes

    half = next(
        (
            each
            for each in HALVES
            if each in built and wins(each) and target.half_ops.get(each, frozenset()) is not None
        ),
        "",
    )
    bits = [8] * wins(WEIGHTS) + [4] * wins("int4")
    small = goal.optimize == "size" and 4 in bits
    bits += [2] * ("int2" in target.precisions and (small or "int2" in wanted))
    rules = target.weight_only if target.weight_only.forms else ANYTHING
    layers = _layers(prepared) if bits else {}
    options = WeightOnly.with_options(prepared.options.get(WeightOnly.name, {}))
    assert isinstance(options, WeightOnly)
    weights = {
        name: _groups(layer, rules, bits, options.group, goal) for name, layer in layers.items()
    }
    float8 = built.get(FLOAT8) if half and wins(FLOAT8) else None
    kernels = target.float8 is not None
    return Offered(
        integers=CODES not in target.instead or CODES in wanted,
        half=half,
        halves=_halves(prepared.graph, built[half][0], DTYPES[half]) if half else frozenset(),
        layers=layers,
        weights={name: own for name, own in weights.items() if own},
        wide=(built[WIDE][0].facts.encodings or {}) if WIDE in built and wins(WIDE) else {},
        dynamic=_dynamic(built[DYNAMIC][0]) if DYNAMIC in built and wins(DYNAMIC) else frozenset(),
        float8=_float8(float8[1]) if float8 and kernels else {},
        pairs=find_pairs(float8[0]) if float8 and not kernels else {},
        rules=rules,
    )


def _halves(graph: Graph, whole: Graph, dtype: ir.DataType) -> frozenset[str]:
    """Names of a graph's results that the whole model in half precision has in it.

    What it lacks, such as scores of an attention that became one operator, went into such a result.
    """
    found = {out.name: out.dtype for node in whole.nodes() for out in node.outputs}
    # Graph outputs stay in float32, under their names, behind a Cast.
    for value in whole.outputs:
        last = value.producer()
        if last is not None and last.op_type == "Cast" and last.inputs[0] is not None:
            found[value.name] = last.inputs[0].dtype
    results = (out for node in graph.nodes() for out in node.outputs)
    return frozenset(
        out.name for out in results if out.name and found.get(out.name, dtype) == dtype
    )


def _layers(prepared: Prepared) -> dict[str, Layer]:
    linear = clone(prepared.graph)
    LinearToMatMul(convolutions=False).run(linear, prepared.context)
    found, _ = find_layers(linear, exclude=prepared.context.exclude, head=True, least=4096)
    # Weights that layers share are decided about together, which is for a search of weights alone.
    return {layer.name: layer for layer in found if not layer.others and len(layer.shape) == 2}


def _groups(
    layer: Layer, rules: WeightOnlyRules, bits: Sequence[int], group: int, goal: Goal
) -> list[tuple[int, int]]:
    """Bits and groups of a layer; groups hardly matter for the time, so that one will do there."""
    kinds = kinds_of(layer, rules, _FEWEST, group)
    found: list[tuple[int, int]] = []
    for width in bits:
        own = [(width, kind.group) for kind in kinds if kind.bits == width]
        fine = [pair for pair in own if pair[1] and pair[1] <= 64]
        found += own if goal.optimize != "latency" else (fine or own)[:1]
    return found


def _dynamic(whole: Graph) -> frozenset[str]:
    """Names of the products that the whole model has in integers."""
    plan: Plan = whole.facts.plan or Plan()
    return frozenset(name for name, (kind, _) in plan.nodes.items() if kind == "int8")


def _float8(stages: Sequence[Stage]) -> dict[str, float]:
    """By name of the product, what the pass of float8 divided its data by."""
    rows = [row for stage in stages if stage.name == "fp8" for row in stage.report.layers]
    return {row["name"]: float(row["input_scale"]) for row in rows}
