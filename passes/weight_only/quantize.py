"""Weights of linear layers in few bits, activations in float."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qgraph.context import Context
from qgraph.facts import Plan, QuantizedWeight
from qgraph.graph import Graph
from qgraph.passes.calibration_cache import code_digest, data_key, graph_key
from qgraph.passes.weight_only.layer_settings import asked_of, own_settings, settings_of
from qgraph.passes.weight_only.layers import Layer, find_layers
from qgraph.passes.weight_only.record import float_share, record
from qgraph.passes.weight_only.relieve import relieve
from qgraph.passes.weight_only.sequential import Quantized, on_data, without_data
from qgraph.passes.weight_only.solve import Settings, Solution
from qgraph.passes.weight_only.store import Store
from qgraph.passes.weight_only.tables import (
    Table,
    find_tables,
    quantize_table,
    still_in_float,
    tied_tables,
    write_table,
)
from qgraph.passes.weight_only.wishes import read_wishes
from qgraph.passes.weight_only.write import fold_scales, write_weight
from qgraph.pipeline import Pass, PassReport
from qgraph.target import ANYTHING, WeightOnlyRules

# Files of the package whose code decides a result.
_CODE = ("weights/*.py", "weight_only/*.py")


@dataclass(frozen=True)
class WeightOnly(Pass):
    """Quantize constant weights of matrix products to 2 to 8 bits; all computing stays in float.

    With data, layers are quantized in the order in which they compute, each from the Gram matrix
    of the input that it gets from the quantized layers in front of it. Layers that share an
    input (q, k and v; gate and up) are done together.

    Before:
        y = MatMul(x, W)

    After:
        y = com.microsoft.MatMulNBits <K, N, bits, block_size> (x, codes, scales, zero_points)

        or the form that the target executes; see `qgraph.passes.weight_forms`.

    When:
        MatMul with a constant [K, N], or [E, K, N] for experts, as second operand; other linear
        layers after `linear_to_matmul`.

    Leaves alone:
        Excluded nodes; the layer that makes a graph output, unless `head`; small weights; bodies
        of If, Loop and Scan.

    Numerics:
        Rounding, of the weights alone.

    Source:
        Frantar et al. 2022, "GPTQ", arXiv 2210.17323; Lin et al. 2023, "AWQ", arXiv 2306.00978;
        the methods' own files in `qgraph.passes.weights`.

    Attributes:
        method: How: `gptq`, `clipped`, `rtn`, `hqq` (uniform codes), `nf4`, `fp4` (codebooks of
            normal and 4-bit floating-point numbers), `squeeze` (a codebook a column), `llm-int8`
            (input channels with outliers in float, the rest in int8).
        bits: 2, 3, 4 or 8.
        group: Rows of a column that share a scale; 0 for whole columns.
        symmetric: Zero points in the middle; default: where the target asks for it.
        scaling: Scale input channels by a power of their magnitude first, as AWQ does; data only.
        clip: Ranges searched: `squared` by the squared error, `gptq` by its 2.4-norm, `none`.
        order: GPTQ: rows with the largest inputs first.
        damping: GPTQ: share of the mean diagonal added to the Gram matrix.
        sweeps: GPTQ: passes of coordinate descent afterwards; default: 1 for symmetric codes, which it
            helps more, else 0.
        refit: GPTQ: fit the scales to the codes in each of them.
        threshold: LLM.int8(): channels whose inputs reach it stay in float.
        layers: Lines `PATTERN=BITS[:GROUP[:METHOD]]` or `PATTERN=float` for layers of these names,
            such as `*down_proj*=8:32`; the last that fits. What a line leaves out is as above.
        head: Quantize layers that make a graph output too.
        embeddings: Quantize tables that Gather reads too, rounded to nearest in the same groups
            along their rows.
        embedding_bits: Of tables: 8, whose errors are far below those of 4-bit layers, or 4.
            Where a head of as many bits multiplies by the same table, both read one set of codes.
        skip_worse: How many layers, those with the largest error, get 8 bits instead.
        min_elements: Smaller weights stay in float.
        memory_mb: Memory beside the model for values handed from layer to layer, MB; more goes to
            disk.
        batch: Rows that the layers will multiply at a time (tokens of a decoder's step, times
            sequences): where the target has measured times, layers that so few bits make slower
            stay in float. Default: none is left for that reason.
        accuracy_level: MatMulNBits: 0 and 1 compute in float, 4 rounds activations to int8, in
            blocks of a row; default: what is fast on the target.
        resume: Go on from the last finished layer of an interrupted run.
    """

    method: Literal["gptq", "clipped", "rtn", "hqq", "nf4", "fp4", "squeeze", "llm-int8"] = "gptq"
    bits: Literal[2, 3, 4, 8] = 4
    group: Annotated[int, Field(ge=0)] = 128
    symmetric: bool | None = None
    scaling: bool = True
    clip: Literal["squared", "gptq", "none"] = "squared"
    order: bool = True
    damping: Annotated[float, Field(ge=0)] = 0.08
    sweeps: Annotated[int, Field(ge=0)] | None = None
    refit: bool = False
    threshold: Annotated[float, Field(gt=0)] = 6.0
    layers: tuple[str, ...] = ()
    head: bool = False
    embeddings: bool = False
    embedding_bits: Literal[4, 8] = 8
    skip_worse: Annotated[int, Field(ge=0)] = 0
    min_elements: Annotated[int, Field(ge=1)] = 4096
    memory_mb: Annotated[int, Field(ge=1)] = 1024
    batch: Annotated[int, Field(ge=1)] | None = None
    accuracy_level: Literal[0, 1, 4] | None = None
    resume: bool = True

    name: ClassVar[str] = "weight_only"
    gives: ClassVar[frozenset[str]] = frozenset({"plan", "quantized"})
    breaks: ClassVar[frozenset[str]] = frozenset({"units", "attention"})
    numerics = "rounding"

    def __post_init__(self) -> None:
        """Refuse lines of `layers` that can't be read."""
        read_wishes(self.layers)

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Quantize and write all weights.

        Raises:
            UsageError: The target has no such codes or groups, or `layers` fits none.
            DataError: The data has no samples, or makes a layer's input NaN or infinite.
            EngineError: onnxruntime is missing or refuses a part of the graph.
        """
        graph.name_nodes()
        rules = ANYTHING if context.target is None else context.target.weight_only
        report = PassReport()
        settings = settings_of(replace(self, layers=()), rules, report, context)
        layers, refused = find_layers(
            graph, exclude=context.exclude, head=self.head, least=self.min_elements
        )
        asked = asked_of(self, layers, refused)
        own = own_settings(asked, refused, rules, report, context)
        layers = [layer for layer in layers if layer in own]
        own = {layer: own[layer] for layer in layers}
        tied = tied_tables(layers)
        tables: list[Table] = []
        if self.embeddings:
            tables, reasons = find_tables(
                graph, layers, tied, exclude=context.exclude, least=self.min_elements
            )
            refused.update(reasons)
        plan = Plan(
            nodes={n.name or "": ("float", f"{n.op_type} stays in float") for n in graph.walk()}
        )
        for name, reason in refused.items():
            plan.nodes[name] = ("float", reason)
            report.refuse(name, reason)
        sizes = {layer.name: math.prod(layer.shape) for layer in layers}
        store = Store(self._key(graph, context, own))
        finished = False
        try:
            found = self._quantized(graph, own, context, store)
            if found.resumed:
                report.notes.append(f"{found.resumed} layers were done by an interrupted run")
            named = [layer for layer in layers if asked[layer].layers]
            found = relieve(graph, found, own, self.skip_worse, but=named)
            solutions = fold_scales(graph, found)
            for layer in layers:
                solution = solutions[layer]
                folded = solution.scale is not None or solution is not found.solutions[layer]
                asked[layer]._write(graph, layer, solution, rules, plan, report, folded)
            self._write_tables(graph, tables, solutions, settings, rules, plan, report)
            finished = True
        finally:
            store.close(finished=finished)
        report.details += still_in_float(graph, tied)
        share = float_share(graph, sizes, report)
        report.notes += [share] if share else []
        graph.drop_unread_initializers()
        graph.facts.plan, graph.facts.quantized = plan, True
        return report

    def _key(
        self, graph: Graph, context: Context, settings: Mapping[Layer, Settings]
    ) -> str | None:
        """Return what the solutions depend on; None where they can't be told from others."""
        data = data_key(context.data)
        if not self.resume or data is None:
            return None
        how = [(layer.name, asdict(own)) for layer, own in settings.items()]
        return repr([code_digest(_CODE), graph_key(graph), data, how])

    def _quantized(
        self, graph: Graph, settings: Mapping[Layer, Settings], context: Context, store: Store
    ) -> Quantized:
        on_inputs = any(
            own.method not in ("rtn", "hqq", "nf4", "fp4") or own.scaling
            for own in settings.values()
        )
        if context.data is None or not on_inputs:
            return without_data(graph, settings, context, store)
        memory = self.memory_mb << 20
        return on_data(graph, settings, context.data, context, store=store, memory=memory)

    def _write(
        self,
        graph: Graph,
        layer: Layer,
        solution: Solution,
        rules: WeightOnlyRules,
        plan: Plan,
        report: PassReport,
        folded: bool,
    ) -> None:
        weight = solution.weight
        bits = int(weight.encoding.dtype[-1]) if isinstance(weight, QuantizedWeight) else None
        forms = rules.forms_for(type(weight).__name__, bits)
        level = rules.accuracy_level if self.accuracy_level is None else self.accuracy_level
        if level == 4 and isinstance(weight, QuantizedWeight):
            # With activations in int8 its kernels are the fastest at every width.
            forms = tuple(sorted(forms, key="matmul_nbits".__ne__))
        options = {
            "matmul_nbits": {"accuracy_level": level},
            "mixed_int8": {"kernel": "dynamic"},
        }
        reason = write_weight(graph, layer, solution, forms, options, folded=folded)
        if reason is not None:
            plan.nodes[layer.name] = ("float", reason)
            report.refuse(layer.name, reason)
            return
        record(layer.name, solution, self.method, self.group, plan, report)

    def _write_tables(
        self,
        graph: Graph,
        tables: Sequence[Table],
        layers: Mapping[Layer, Solution],
        settings: Settings,
        rules: WeightOnlyRules,
        plan: Plan,
        report: PassReport,
    ) -> None:
        """Quantize and write what Gathers read; the layers are written already."""
        for table in tables:
            reason = table.read_in_float(graph)
            if reason is None:
                solution = quantize_table(graph, table, self.embedding_bits, settings, layers)
                reason = write_table(graph, table, solution, rules.forms["Table"])
            if reason is not None:
                for node in table.nodes:
                    plan.nodes[node.name or ""] = ("float", reason)
                    report.refuse(node.name or "", reason)
                continue
            record(table.name, solution, self.method, self.group, plan, report)
