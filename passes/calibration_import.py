"""Brings encodings from a file to the values of a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qgraph.context import Context
from qgraph.encoding import INTEGERS, Encoding, Spec, encode_range
from qgraph.encodings_json import Encodings, Given, Range, tensor_at
from qgraph.errors import DataError
from qgraph.facts import Plan
from qgraph.graph import Graph
from qgraph.passes.calibration_cache import graph_key
from qgraph.pipeline import PassReport

# So many names stand in one line of a message.
_NAMED = 3


@dataclass(frozen=True)
class Imported:
    """What a file settles.

    Attributes:
        encodings: By value name; values of one group share one object.
        ranges: By value name.
    """

    encodings: Mapping[str, Encoding]
    ranges: Mapping[str, Range]


def import_encodings(
    given: Encodings, graph: Graph, plan: Plan, context: Context, report: PassReport
) -> Imported:
    """Take from a file what it says about planned values.

    One value that the file names settles the encoding of its whole group, since the group shares
    one. What the file says about others goes to `report.refused`, with one warning for all.

    Args:
        given: The file's content.
        graph: The graph as it stands after the repairs.
        plan: What will be quantized.
        context: Has the recipe.
        report: Takes warnings and what is not used.

    Raises:
        DataError: The target refuses an encoding, or members of a group contradict each other.
    """
    _compare_graphs(given, graph, plan, context, report)
    _tell_unused(given, graph, plan, report)
    groups: dict[str, list[str]] = {}
    for name, placement in plan.activations.items():
        groups.setdefault(placement.group, []).append(name)
    encodings: dict[str, Encoding] = {}
    ranges: dict[str, Range] = {}
    contradict: list[str] = []
    for members in groups.values():
        named = [name for name in members if name in given.tensors]
        if not named:
            continue
        spec = plan.activations[members[0]].spec
        encoding = _group_encoding(given, named, spec, report)
        encodings.update(dict.fromkeys(members, encoding))
        spans = [span for name in named if (span := given.tensors[name].range)]
        if given.own and _edited(spans, len(named), encoding, spec):
            contradict.append(named[0])
        for name in members:
            told = given.tensors[name].range if name in given.tensors else None
            ranges[name] = told or _represented(encoding)
    if contradict:
        report.warnings.append(
            f"{given.where}: scale and range of {_some(contradict)} disagree; the scale counts "
            "(remove scale and zero_point to have the range count)"
        )
    report.notes.append(
        f"{len(encodings)} of {len(plan.activations)} encodings from {given.where} ({given.format})"
    )
    return Imported(encodings, ranges)


def missing_data(given: Encodings, missing: Sequence[str]) -> DataError:
    """Return the error for values that neither the file nor data can settle."""
    return DataError(
        f"has no encoding for {_some(missing)}",
        where=given.where,
        fix="add them, or pass --data to calibrate them",
    )


# -- one group -----------------------------------------------------------------------------------


def _group_encoding(
    given: Encodings, named: Sequence[str], spec: Spec, report: PassReport
) -> Encoding:
    exact = {name: given.tensors[name] for name in named if given.tensors[name].scale is not None}
    if not exact:
        for name in named:
            _check_type(given.tensors[name], spec, tensor_at(given.where, name))
        spans = [span for name in named if (span := given.tensors[name].range)]
        return encode_range(min(s[0] for s in spans), max(s[1] for s in spans), spec)
    found = {
        name: _encoding(each, spec, tensor_at(given.where, name)) for name, each in exact.items()
    }
    first, *rest = found.items()
    odd = [name for name, encoding in rest if not _equal(encoding, first[1])]
    if not odd:
        return first[1]
    if given.own:
        raise DataError(
            f"differs from {odd[0]!r}, with which it shares one encoding",
            where=tensor_at(given.where, first[0]),
            fix="give both the same scale and zero_point, or remove one of the two",
        )
    spans = [_represented(encoding) for encoding in found.values()]
    report.warnings.append(
        f"{given.where}: {_some(list(found))} share one encoding here but not in the file; "
        "it holds all their ranges"
    )
    return encode_range(min(s[0] for s in spans), max(s[1] for s in spans), spec)


def _encoding(given: Given, spec: Spec, where: str) -> Encoding:
    """Return exactly what the file says, on the target's grid."""
    assert given.scale is not None
    _check_type(given, spec, where)
    low, high, _ = INTEGERS[spec.dtype]
    # Files that count codes from 0 say the same of a signed type, whose codes begin at `low`.
    zero = given.zero_point if given.dtype else given.zero_point + low
    middle = (low + high + 1) // 2
    if given.symmetric and spec.symmetric:
        zero = middle
    if not low <= zero <= high:
        raise DataError(f"zero_point {zero} is outside of {spec.dtype}", where=where)
    if spec.symmetric and zero != middle:
        raise DataError(
            f"zero_point is {zero}, the target takes {spec.dtype} with zero point {middle} only",
            where=where,
            fix="remove scale and zero_point to keep its range, or choose another target",
        )
    return Encoding(spec.dtype, np.asarray(given.scale, np.float32), np.asarray(zero, np.int64))


def _check_type(given: Given, spec: Spec, where: str) -> None:
    width = INTEGERS[spec.dtype][2]
    bits = int(np.iinfo(width).bits) if width.kind in "iu" else 4
    if given.dtype not in (None, spec.dtype) or given.bits not in (0, bits):
        found = given.dtype or f"{given.bits} bits wide"
        raise DataError(
            f"is {found}, the target takes {spec.dtype}",
            where=where,
            fix="remove dtype, scale and zero_point to keep its range, or choose another target",
        )


def _equal(a: Encoding, b: Encoding) -> bool:
    return bool(a.scale == b.scale and a.zero_point == b.zero_point)


def _represented(encoding: Encoding) -> Range:
    low, high, _ = INTEGERS[encoding.dtype]
    scale, zero = float(encoding.scale), int(encoding.zero_point)
    return (low - zero) * scale, (high - zero) * scale


def _edited(spans: Sequence[Range], members: int, encoding: Encoding, spec: Spec) -> bool:
    """Whether the ranges, which qgraph writes beside scales, lead to another scale."""
    if len(spans) != members:
        return False
    expected = encode_range(min(s[0] for s in spans), max(s[1] for s in spans), spec)
    return not _equal(expected, encoding)


# -- the file against the graph ----------------------------------------------------------------------


def _compare_graphs(
    given: Encodings, graph: Graph, plan: Plan, context: Context, report: PassReport
) -> None:
    """Warn where the encodings were made on another graph than this one."""
    if not given.graph or given.graph == graph_key(graph, plan.activations):
        return
    changed = _changed_repairs(given, context)
    why = (
        f"the repairs {', '.join(changed)} had other options"
        if changed
        else "another model, other options, or repairs that ran on other data"
    )
    report.warnings.append(
        f"{given.where}: the encodings were made on another graph ({why}); ranges may not fit"
    )


def _changed_repairs(given: Encodings, context: Context) -> list[str]:
    from qgraph.flow import REPAIRS, build

    if given.repairs is None or context.recipe is None:
        return []
    now = {each.name: each.options() for each in build(REPAIRS, context.recipe.passes)}
    return sorted(name for name in now if now[name] != given.repairs.get(name))


def _tell_unused(given: Encodings, graph: Graph, plan: Plan, report: PassReport) -> None:
    present = {v.name for v in [*graph.main.inputs, *(o for n in graph.nodes() for o in n.outputs)]}
    for name, reason in given.skipped:
        report.refuse(name, reason)
    gone = [name for name in given.tensors if name not in present]
    idle = [name for name in given.tensors if name in present and name not in plan.activations]
    for name in gone:
        report.refuse(name, "the optimized graph has no such value")
    for name in idle:
        reason = plan.floats.get(name, "no quantized operator writes or reads it")
        report.refuse(name, f"it stays in float: {reason}")
    if gone:
        report.warnings.append(
            f"{given.where}: {_some(gone)} not used: the optimized graph has no such value"
        )
    if idle:
        report.warnings.append(f"{given.where}: {_some(idle)} not used: float in this plan")
    if given.skipped:
        name, reason = given.skipped[0]
        more = f" (and {len(given.skipped) - 1} more)" if len(given.skipped) > 1 else ""
        report.warnings.append(f"{given.where}: {name!r} not used: {reason}{more}")


def _some(names: Sequence[str]) -> str:
    """Name the first few, and count the rest."""
    listed = ", ".join(repr(name) for name in names[:_NAMED])
    return listed if len(names) <= _NAMED else f"{listed} and {len(names) - _NAMED} more"
