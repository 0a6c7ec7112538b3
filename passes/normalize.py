"""Normal form: what every later pass may take for granted about a model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from qgraph import onnx_io
from qgraph.collector import collector_paused
from qgraph.constants import constant_tensor
from qgraph.context import Context
from qgraph.errors import UsageError
from qgraph.graph import Graph, Value
from qgraph.pipeline import Pass, PassReport

# Since this IR version weights need not be listed as graph inputs.
_IR_WITHOUT_INPUTS = 4
_OLDEST, _NEWEST = 9, onnx.defs.onnx_opset_version()


@dataclass(frozen=True)
class Normalize(Pass):
    """Bring a model to the form that other passes expect.

    Nodes get unique names, values names that are unique across subgraphs, the domain `ai.onnx`
    becomes the empty one, Constant nodes become initializers, the default opset is upgraded,
    the IR version follows it, and shapes are inferred. What fails is reported and left as it is.

    Before:
        <ir_version: 3, opset_import: ["" : 9]>     # w must be listed as an input, too
        c = Constant <value_float = 2.0>
        t = Mul(x, w)
        y = Mul(t, c)

    After:
        <ir_version: 10, opset_import: ["" : 21]>   # c and w are initializers
        [Mul] t = Mul(x, w)
        [Mul_1] y = Mul(t, c)

    When:
        Always; it is the first pass.

    Leaves alone:
        A Constant that is itself a graph output; Constants in local functions; weights that are
        also graph inputs, from IR version 4 on, unless `freeze_inputs` is set, because a caller
        may override them; the opset, where onnx's version converter fails or the model has local
        functions.

    Numerics:
        Exact. A model of IR version 3 had to list its weights as inputs, so there they become
        constants.

    Source:
        https://onnx.ai/onnx/repo-docs/IR.html,
        https://onnx.ai/onnx/repo-docs/VersionConverter.html.

    Attributes:
        opset: Default operator set to upgrade to; an older or equal one is never downgraded.
        freeze_inputs: Take weights that are listed as graph inputs for constants.
    """

    name: ClassVar[str] = "normalize"

    opset: int = 21
    freeze_inputs: bool = False

    def __post_init__(self) -> None:
        """Refuse an opset that onnx does not know.

        Raises:
            UsageError: `opset` is outside what the installed onnx supports.
        """
        if not _OLDEST <= self.opset <= _NEWEST:
            raise UsageError(
                f"normalize.opset must be {_OLDEST} to {_NEWEST}, got {self.opset}",
                fix="21 is what the engines know",
            )

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Normalize the whole model."""
        with collector_paused():
            return self._run(graph)

    def _run(self, graph: Graph) -> PassReport:
        report = PassReport()
        _default_domain(graph, report)
        frozen = self.freeze_inputs or graph.model.ir_version < _IR_WITHOUT_INPUTS
        # First, since both what follows and the converter make initializers that are no inputs.
        _raise_ir_version(graph, _IR_WITHOUT_INPUTS, report)
        _free_weights(graph, frozen, report)
        _lift_constants(graph, report)
        # Before the upgrade, which keeps names and finds nodes by them.
        _unique_values(graph, report)
        upgraded = self._upgrade(graph, report)
        needed = onnx.helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", graph.opset), 0)
        _raise_ir_version(graph, needed, report)
        if upgraded:
            _unique_values(graph, report)
        _unique_nodes(graph, report)
        if not upgraded:
            problem = onnx_io.infer_shapes(graph)
            if problem:
                report.warnings.append(problem)
        return report

    def _upgrade(self, graph: Graph, report: PassReport) -> bool:
        before = graph.opset
        if before >= self.opset or "" not in graph.model.opset_imports:
            return False
        problem = onnx_io.upgrade_opset(graph, self.opset)
        if problem:
            report.refuse("opset", problem)
            report.warnings.append(f"the model stays at opset {before}: {problem}")
            return False
        report.did(f"opset {before} became {self.opset}")
        # The converter writes what were attributes as Constant nodes.
        _lift_constants(graph, report)
        return True


def _default_domain(graph: Graph, report: PassReport) -> None:
    functions = [function.opset_imports for function in graph.model.functions.values()]
    for imports in (graph.model.opset_imports, *functions):
        version = imports.pop("ai.onnx", None)
        if version is not None:
            imports.setdefault("", version)
            report.did("domain 'ai.onnx' became ''")


def _lift_constants(graph: Graph, report: PassReport) -> None:
    count = 0
    for each in list(graph.graphs()):
        for node in each:
            tensor = constant_tensor(node) if node.op_type == "Constant" else None
            if tensor is None or node.outputs[0].is_graph_output():
                continue
            _lift(each, node, tensor)
            count += 1
    if count:
        report.did(f"{count} Constant nodes became initializers")


def _lift(owner: ir.Graph, node: ir.Node, tensor: ir.TensorProtocol) -> None:
    old = node.outputs[0]
    tensor.name = old.name
    new = ir.Value(
        name=old.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        doc_string=old.doc_string,
        const_value=tensor,
        metadata_props=old.metadata_props,
    )
    new.meta.update(old.meta)
    for user, index in old.uses():
        user.replace_input_with(index, new)
    owner.remove(node, safe=True)
    owner.register_initializer(new)


def _free_weights(graph: Graph, frozen: bool, report: PassReport) -> None:
    inputs = graph.main.inputs
    both = [value for value in inputs if value.is_initializer()]
    if not both:
        return
    if not frozen:
        names = ", ".join(repr(value.name) for value in both[:3])
        report.warnings.append(
            f"{len(both)} weights are also graph inputs, so they can't be folded, fused or "
            f"quantized: {names}{', ...' if len(both) > 3 else ''}; "
            "set normalize.freeze_inputs=true if no caller overrides them"
        )
        return
    kept = [value for value in inputs if not value.is_initializer()]
    inputs.clear()
    inputs.extend(kept)
    report.did(f"{len(both)} weights that were listed as inputs became constants")


def _raise_ir_version(graph: Graph, needed: int, report: PassReport) -> None:
    before = graph.model.ir_version
    if needed > before:
        graph.model.ir_version = needed
        report.did(f"IR version {before} became {needed}")


def _unique_nodes(graph: Graph, report: PassReport) -> None:
    seen: set[str] = set()
    count = 0
    for node in graph.walk():
        if not node.name or node.name in seen:
            node.name = graph.fresh(node.name or node.op_type)
            count += 1
        seen.add(node.name)
    if count:
        report.did(f"{count} nodes got unique names")


def _unique_values(graph: Graph, report: PassReport) -> None:
    seen: set[str] = set(graph.sparse)
    count = 0
    for each in graph.graphs():
        for value in _defined(each):
            if value.name in seen:
                value.name = graph.fresh(value.name)
                count += 1
            seen.add(value.name or "")
    if count:
        report.did(f"{count} values of subgraphs got names of their own")


def _defined(graph: ir.Graph) -> Iterator[Value]:
    yield from graph.inputs
    # Renaming changes the dictionary.
    yield from [v for v in graph.initializers.values() if not v.is_graph_input()]
    for node in graph:
        for value in node.outputs:
            if value.name:
                yield value
