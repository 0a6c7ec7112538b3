"""Weights of linear layers in few bits, activations in float."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from qgraph.context import Context
from qgraph.costs import load_costs, pays
from qgraph.encoding import Spec
from qgraph.facts import Plan, QuantizedWeight
from qgraph.graph import Graph
from qgraph.passes.calibration_cache import data_key, graph_key
from qgraph.passes.weight_only.layers import Layer, find_layers
from qgraph.passes.weight_only.sequential import Quantized, on_data, without_data
from qgraph.passes.weight_only.solve import MIXED, Settings, Solution, solve_group
from qgraph.passes.weight_only.store import Store
from qgraph.passes.weight_only.write import fold_scales, write_weight
from qgraph.passes.weights import WEIGHT_QUANTIZERS
from qgraph.passes.weights.gptq import GPTQOptions
from qgraph.passes.weights.grid import SHARES, RangeSearch
from qgraph.pipeline import Pass, PassReport
from qgraph.target import ANYTHING, Target, WeightOnlyRules

# What methods that need data are replaced with where there is none.
WITHOUT_DATA = "clipped"
ON_DATA = ("gptq", MIXED)


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
        sweeps: GPTQ: passes of coordinate descent afterwards.
        refit: GPTQ: fit the scales to the codes in each of them.
        threshold: LLM.int8(): channels whose inputs reach it stay in float.
        head: Quantize layers that make a graph output too.
        skip_worse: How many layers, those with the largest error, get 8 bits instead.
        min_elements: Smaller weights stay in float.
        memory_mb: Memory beside the model for values handed from layer to layer, MB; more goes to
            disk.
        batch: Rows that the layers will multiply at a time (tokens of a decoder's step, times
            sequences): where the target has measured times, layers that so few bits make slower
            stay in float. Default: none is left for that reason.
        accuracy_level: MatMulNBits: 0 and 1 compute in float, 4 rounds activations to int8.
        resume: Go on from the last finished layer of an interrupted run.
    """

    method: Literal["gptq", "clipped", "rtn", "hqq", "nf4", "fp4", "squeeze", "llm-int8"] = "gptq"
    bits: Literal[2, 3, 4, 8] = 4
    group: Annotated[int, Field(ge=0)] = 128
    symmetric: bool | None = None
    scaling: bool = True
    clip: Literal["squared", "gptq", "none"] = "squared"
    order: bool = True
    damping: Annotated[float, Field(ge=0)] = 0.01
    sweeps: Annotated[int, Field(ge=0)] = 0
    refit: bool = False
    threshold: Annotated[float, Field(gt=0)] = 6.0
    head: bool = False
    skip_worse: Annotated[int, Field(ge=0)] = 0
    min_elements: Annotated[int, Field(ge=1)] = 4096
    memory_mb: Annotated[int, Field(ge=1)] = 1024
    batch: Annotated[int, Field(ge=1)] | None = None
    accuracy_level: Literal[0, 1, 4] = 0
    resume: bool = True

    name: ClassVar[str] = "weight_only"
    gives: ClassVar[frozenset[str]] = frozenset({"plan", "quantized"})
    breaks: ClassVar[frozenset[str]] = frozenset({"units", "attention"})
    numerics = "rounding"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Quantize and write all weights.

        Raises:
            UsageError: The target has no such codes or groups.
            DataError: The data has no samples, or makes a layer's input NaN or infinite.
            EngineError: onnxruntime is missing or refuses a part of the graph.
        """
        graph.name_nodes()
        rules = ANYTHING if context.target is None else context.target.weight_only
        report = PassReport()
        settings = self._settings(rules, report, context)
        layers, refused = find_layers(
            graph, exclude=context.exclude, head=self.head, least=self.min_elements
        )
        if not settings.uniform:
            for layer in [layer for layer in layers if len(layer.shape) == 3]:
                refused[layer.name] = f"{settings.method} takes no stack of experts' weights"
                layers.remove(layer)
        if self.batch is not None:
            for name, reason in self._slower(layers, self.batch, context.target, report).items():
                refused[name] = reason
                layers = [layer for layer in layers if layer.name != name]
        if settings.uniform:
            settings = self._with_whole_blocks(rules, layers, settings, refused)
        plan = Plan(
            nodes={n.name or "": ("float", f"{n.op_type} stays in float") for n in graph.walk()}
        )
        for name, reason in refused.items():
            plan.nodes[name] = ("float", reason)
            report.refuse(name, reason)
        store = Store(self._key(graph, context, settings))
        finished = False
        try:
            found = self._quantized(graph, layers, settings, context, store)
            if found.resumed:
                report.notes.append(f"{found.resumed} layers were done by an interrupted run")
            solutions = fold_scales(graph, self._relieved(graph, found, settings))
            for layer in layers:
                self._write(graph, layer, solutions[layer], rules, plan, report)
            finished = True
        finally:
            store.close(finished=finished)
        graph.drop_unread_initializers()
        graph.facts.plan, graph.facts.quantized = plan, True
        return report

    def _with_whole_blocks(
        self,
        rules: WeightOnlyRules,
        layers: list[Layer],
        settings: Settings,
        refused: dict[str, str],
    ) -> Settings:
        """Give layers that don't divide into whole groups shorter ones; refuse them if none fit."""
        blocks: dict[int, int] = {}
        for layer in list(layers):
            block = rules.block_for(layer.size, self.group)
            if block is None:
                reason = f"its {layer.size} rows do not divide into whole groups of {self.group}"
                refused[layer.name] = f"{reason}, as the target wants them"
                layers.remove(layer)
            elif block != self.group:
                blocks[layer.size] = block
        return replace(settings, blocks=blocks)

    def _slower(
        self, layers: Sequence[Layer], batch: int, target: Target | None, report: PassReport
    ) -> dict[str, str]:
        """Return the layers that few bits make slower on the target, with reasons, by name."""
        if target is None or not target.costs:
            name = "without a target" if target is None else f"for target {target.name}"
            report.warnings.append(f"no times were measured {name}: batch={batch} decides nothing")
            return {}
        table, kernel = load_costs(target.costs), f"int{self.bits}"
        against = target.float_type or "fp32"
        found = {}
        for layer in layers:
            if len(layer.shape) != 2:
                continue
            verdict = pays(table, *layer.shape, batch, kernel, self.group, against=against)
            if verdict is not None and not verdict.pays:
                found[layer.name] = (
                    f"{kernel} would take {verdict.ratio:.2f} times as long as {against} "
                    f"at batch {batch} ({verdict.source})"
                )
        return found

    def _settings(self, rules: WeightOnlyRules, report: PassReport, context: Context) -> Settings:
        """Return how to quantize, once the target is known to execute it."""
        symmetric = rules.symmetric if self.symmetric is None else self.symmetric
        uniform = self.method in WEIGHT_QUANTIZERS
        rules.check(self.method, uniform, self.bits, self.group, symmetric)
        method = self.method
        if context.data is None and method in ON_DATA:
            report.warnings.append(f"{method} needs data: did {WITHOUT_DATA} instead; pass --data")
            method = WITHOUT_DATA  # type: ignore[assignment]
        spec = Spec(
            f"{'int' if symmetric else 'uint'}{self.bits}",
            symmetric,
            axis=0 if self.group else 1,
            block=self.group,
        )
        search = RangeSearch(
            shares=(1.0,) if self.clip == "none" else SHARES,
            norm=2.4 if self.clip == "gptq" else 2.0,
            signed=symmetric and rules.negative_scales,
        )
        gptq = GPTQOptions(
            damping=self.damping,
            order=self.order,
            search=search,
            sweeps=self.sweeps,
            refit=self.refit,
        )
        scaling = self.scaling and uniform and context.data is not None
        return Settings(
            method,
            spec,
            scaling,
            gptq,
            self.bits,
            self.threshold,
            float_zero="FloatZero" in rules.forms and not symmetric,
        )

    def _key(self, graph: Graph, context: Context, settings: Settings) -> str | None:
        data = data_key(context.data)
        if not self.resume or data is None:
            return None
        return repr([graph_key(graph), data, asdict(settings), self.head, context.exclude])

    def _quantized(
        self,
        graph: Graph,
        layers: Sequence[Layer],
        settings: Settings,
        context: Context,
        store: Store,
    ) -> Quantized:
        on_inputs = settings.method not in ("rtn", "hqq", "nf4", "fp4") or settings.scaling
        if context.data is None or not on_inputs:
            return without_data(graph, layers, settings, context, store)
        memory = self.memory_mb << 20
        return on_data(graph, layers, context.data, settings, context, store=store, memory=memory)

    def _relieved(self, graph: Graph, found: Quantized, settings: Settings) -> Quantized:
        """Give the layers with the largest errors 8 bits."""
        uniform = [k for k, v in found.solutions.items() if isinstance(v.weight, QuantizedWeight)]
        worst = sorted(uniform, key=lambda each: -found.solutions[each].loss)[: self.skip_worse]
        kind = settings.spec.dtype.rstrip("2348")
        eight = replace(
            settings, method="rtn", scaling=False, spec=replace(settings.spec, dtype=f"{kind}8")
        )
        solutions: dict[Layer, Solution] = dict(found.solutions)
        for layer in worst:
            old, weight = solutions[layer], layer.matrix(graph)
            if weight.ndim == 3:
                continue
            scaled = weight if old.scale is None else weight * old.scale[:, None]
            (new,) = solve_group([scaled], None, eight)
            note = f"{settings.spec.dtype} would err by {old.loss:.3g}"
            solutions[layer] = replace(new, scale=old.scale, before=old.before, note=note)
        return replace(found, solutions=solutions)

    def _write(
        self,
        graph: Graph,
        layer: Layer,
        solution: Solution,
        rules: WeightOnlyRules,
        plan: Plan,
        report: PassReport,
    ) -> None:
        weight = solution.weight
        bits = int(weight.encoding.dtype[-1]) if isinstance(weight, QuantizedWeight) else None
        forms = rules.forms_for(type(weight).__name__, bits)
        if self.accuracy_level == 4 and isinstance(weight, QuantizedWeight):
            # With activations in int8 its kernels are the fastest at every width.
            forms = tuple(sorted(forms, key="matmul_nbits".__ne__))
        options = {
            "matmul_nbits": {"accuracy_level": self.accuracy_level},
            "mixed_int8": {"kernel": "dynamic"},
        }
        reason = write_weight(graph, layer, solution, forms, options)
        if reason is not None:
            plan.nodes[layer.name] = ("float", reason)
            report.refuse(layer.name, reason)
            return
        label = weight.encoding.dtype if isinstance(weight, QuantizedWeight) else self.method
        error = f"relative error of the result {solution.loss:.3g}"
        if solution.before is not None:
            error += f", rounded to nearest {solution.before:.3g}"
        plan.nodes[layer.name] = (label.removeprefix("u"), f"{solution.method}, {error}")
        report.did(f"{layer.name}: {label} by {solution.method}, {error}, {solution.seconds:.2f} s")
        if isinstance(weight, QuantizedWeight) and self.group not in (0, *weight.encoding.block):
            length = max(weight.encoding.block)
            report.details.append(f"{layer.name}: groups of {length}: the target wants whole ones")
        if solution.note:
            report.details.append(f"{layer.name}: {solution.note}")
        report.layers.append(
            {
                "name": layer.name,
                "type": label,
                "method": solution.method,
                "bits": _bits(weight),
                "error_before": solution.before,
                "error": solution.loss,
                "seconds": round(solution.seconds, 3),
                "note": solution.note,
            }
        )


def _bits(weight: Any) -> float:
    """Stored bits a weight, scales and zero points included."""
    if not isinstance(weight, QuantizedWeight):
        return round(float(weight.bits()), 3)
    encoding = weight.encoding
    bits = int(encoding.dtype[-1])
    zero = 0 if encoding.dtype.startswith("int") else bits
    return round(bits + (32 + zero) * encoding.scale.size / weight.codes.size, 3)
