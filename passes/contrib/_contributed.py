"""What the passes that write onnxruntime's own operators have in common."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

from qgraph.context import Context
from qgraph.graph import Graph, Node, Value
from qgraph.passes.cleanup.drop_dead import DropDead
from qgraph.pattern import Match
from qgraph.pipeline import Fusion, PassReport, Reject

DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Contributed(Fusion):
    """A fusion that ends in one operator of onnxruntime's.

    Nodes that the user excludes stay nodes of their own, so that their precision can be chosen.

    Attributes:
        writes: The operator; `qgraph.targets.contrib` says which engine has it.
        exclude: Globs of node names and operators that are left alone.
    """

    exclude: tuple[str, ...] = ()

    breaks: ClassVar[frozenset[str]] = frozenset({"units", "attention"})
    writes: ClassVar[str]

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Apply the fusion everywhere but to excluded nodes."""
        told = replace(self, exclude=(*self.exclude, *context.exclude))
        report = super(Contributed, told).run(graph, context)
        if report.changed:
            # What leads to a mask, and what repeated a cache's heads.
            DropDead().run(graph, context)
        return report

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Rewrite one match, or refuse it."""
        for glob in self.exclude:
            if any(_is_called(node, glob) for node in m.nodes):
                return Reject(f"a part of it is excluded by {glob!r}")
        return self.lowered(graph, m)

    def lowered(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Rewrite one match without excluded nodes, or refuse it."""
        raise NotImplementedError


def _is_called(node: Node, glob: str) -> bool:
    return fnmatchcase(node.name or "", glob) or fnmatchcase(node.op_type, glob)
