"""What differs between two models: nodes and constants added, removed and changed.

Nodes are paired by what they compute first and by names then (see `qgraph.pairing`): a model exported
again under other names differs in nothing, and one with new weights differs in these only.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from qgraph import text
from qgraph.fingerprint import Fingerprints, attributes_of
from qgraph.graph import Graph, Node, Value
from qgraph.graph_text import node_text, value_text
from qgraph.pairing import Pairs, constants


@dataclass(frozen=True)
class Change:
    """One thing that is in both models, but not the same.

    Attributes:
        name: Its name in the first model.
        kind: Operator of a node, type and shape of a constant, `input` or `output`.
        changes: One line a difference.
    """

    name: str
    kind: str
    changes: tuple[str, ...]


@dataclass
class Part:
    """Differences in nodes, constants or the interface.

    Attributes:
        same: How many are in both and equal, names aside.
        added: Only in the second model, as (name, kind).
        removed: Only in the first model.
        changed: In both, but different.
        renamed: How many of the same have another name.
    """

    same: int = 0
    added: list[tuple[str, str]] = field(default_factory=list)
    removed: list[tuple[str, str]] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    renamed: int = 0

    @property
    def differs(self) -> bool:
        """Whether there is any difference but names."""
        return bool(self.added or self.removed or self.changed)


@dataclass
class ModelDiff:
    """All differences between two models.

    Attributes:
        interface: Graph inputs and outputs.
        nodes: Nodes, those in bodies of If, Loop and Scan included.
        initializers: Constants.
        opsets: Domain -> (version in the first, in the second), where they differ.
    """

    interface: Part
    nodes: Part
    initializers: Part
    opsets: dict[str, tuple[int | None, int | None]]

    @property
    def identical(self) -> bool:
        """Whether nothing differs but names."""
        parts = (self.interface, self.nodes, self.initializers)
        return not self.opsets and not any(part.differs for part in parts)

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        found = asdict(self)
        for name in ("interface", "nodes", "initializers"):
            for side in ("added", "removed"):
                found[name][side] = [{"name": n, "kind": k} for n, k in found[name][side]]
        return {"identical": self.identical, **found}


def diff(a: Graph, b: Graph) -> ModelDiff:
    """Compare two models; neither is changed."""
    pairs = Pairs(a, b)
    versions = (dict(a.model.opset_imports), dict(b.model.opset_imports))
    opsets = {
        domain or "ai.onnx": (versions[0].get(domain), versions[1].get(domain))
        for domain in sorted({*versions[0], *versions[1]})
        if versions[0].get(domain) != versions[1].get(domain)
    }
    return ModelDiff(_interface(a, b), _nodes(pairs), _initializers(pairs), opsets)


def _nodes(pairs: Pairs) -> Part:
    part = Part()
    for node in pairs.all_a:
        other = pairs.node.get(node)
        if other is None:
            part.removed.append((_name(node), node.op_type))
            continue
        changes = _changes(pairs, node, other)
        if changes:
            part.changed.append(Change(_name(node), node.op_type, tuple(changes)))
        else:
            part.same += 1
            part.renamed += node.name != other.name
    part.added = [(_name(n), n.op_type) for n in pairs.all_b if n not in pairs.taken]
    return part


def _initializers(pairs: Pairs) -> Part:
    part, used = Part(), set()
    for value in constants(pairs.a):
        other = pairs.value.get(value)
        if other is None:
            part.removed.append((value.name or "", _kind(value)))
            continue
        used.add(other)
        change = _constant_change(value, other, pairs.prints)
        if change is None:
            part.same += 1
            part.renamed += value.name != other.name
        else:
            part.changed.append(Change(value.name or "", _kind(value), (change,)))
    part.added = [(v.name or "", _kind(v)) for v in constants(pairs.b) if v not in used]
    return part


def _changes(pairs: Pairs, node: Node, other: Node) -> list[str]:
    if pairs.prints[0].node(node) == pairs.prints[1].node(other):
        return []
    lines = []
    ours, theirs = (attributes_of(n, p) for n, p in zip((node, other), pairs.prints, strict=True))
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            before = ours.get(name, "absent")
            lines.append(f"attribute {name}: {before} -> {theirs.get(name, 'absent')}")
    for index in range(max(len(node.inputs), len(other.inputs))):
        mine = node.inputs[index] if index < len(node.inputs) else None
        yours = other.inputs[index] if index < len(other.inputs) else None
        if mine is None and yours is None:
            continue
        if mine is None or yours is None or pairs.value.get(mine) is not yours:
            lines.append(f"input {index}: {value_text(mine)} -> {value_text(yours)}")
    if len(node.outputs) != len(other.outputs):
        lines.append(f"outputs: {len(node.outputs)} -> {len(other.outputs)}")
    return lines


def _name(node: Node) -> str:
    return node.name or text.printable(node_text(node))


def _kind(value: Value) -> str:
    return value_text(value).removeprefix(text.printable(value.name or "?")).strip()


def _constant_change(a: Value, b: Value, prints: tuple[Fingerprints, Fingerprints]) -> str | None:
    if prints[0].value(a) == prints[1].value(b):
        return None
    if _kind(a) != _kind(b):
        return f"{_kind(a)} -> {_kind(b)}"
    left, right = a.const_value, b.const_value
    if left is None or right is None or a.dtype is None or a.dtype.name == "STRING":
        return "values differ"
    x, y = (np.asarray(t.numpy()).astype(np.float64) for t in (left, right))
    differing = int(np.sum(x != y))
    distance = np.abs(x - y)[np.isfinite(x) & np.isfinite(y)].max(initial=0.0)
    return f"{differing} of {x.size} values differ, by up to {distance:.3g}"


def _interface(a: Graph, b: Graph) -> Part:
    part = Part()
    for kind, ours, theirs in (
        ("input", a.inputs, b.inputs),
        ("output", a.outputs, b.outputs),
    ):
        others = {value.name: value for value in theirs}
        for value in ours:
            other = others.pop(value.name, None)
            if other is None:
                part.removed.append((value.name or "", kind))
            elif value_text(value) != value_text(other):
                change = f"{_kind(value)} -> {_kind(other)}"
                part.changed.append(Change(value.name or "", kind, (change,)))
            else:
                part.same += 1
        part.added += [(name or "", kind) for name in others]
    return part
