"""What a search for bits works on: the float graph, its layers, and models with some of them in few."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.errors import UsageError
from qgraph.facts import Plan
from qgraph.graph import Graph
from qgraph.job import Job
from qgraph.passes.linear_to_matmul import LinearToMatMul
from qgraph.passes.weight_only.layer_settings import settings_of
from qgraph.passes.weight_only.layers import Layer, find_layers
from qgraph.passes.weight_only.quantize import WeightOnly
from qgraph.passes.weight_only.solve import Settings
from qgraph.passes.weights import WEIGHT_QUANTIZERS
from qgraph.pipeline import PassReport, Pipeline, Stage
from qgraph.search.prepared import clone
from qgraph.search.weights.kinds import FLOAT, Kind, kinds_of, read_assign
from qgraph.search.whole import Whole
from qgraph.search.workspace import Workspace
from qgraph.target import ANYTHING, WEIGHT_ONLY, WeightOnlyRules

Options = dict[str, dict[str, Any]]


@dataclass(eq=False, kw_only=True)
class WeightSpace(Workspace):
    """What a search for the bits of weights works on.

    Attributes:
        graph: The float model, as the engine gets it.
        linear: The same with every linear layer as a product, the form in which layers are found.
        layers: What is decided, in graph order; those with a common weight are one.
        kinds: For each layer, the ways to keep its weight.
        context: What passes are told, calibration data with it.
        stages: What the passes did to the float model.
        built: By model name, graph and stages of what was built.
    """

    graph: Graph
    linear: Graph
    layers: list[Layer]
    kinds: list[list[Kind]]
    context: Context
    stages: list[Stage]
    built: dict[str, tuple[Graph, list[Stage], tuple[Kind, ...]]] = field(default_factory=dict)
    _models: dict[tuple[Kind, ...], Whole] = field(default_factory=dict)

    @property
    def rules(self) -> WeightOnlyRules:
        """Which weights the target executes."""
        return rules_of(self.job)

    @property
    def rounds_data(self) -> bool:
        """Whether the kernels of its weights round their data to int8."""
        asked = weight_options(self.job).accuracy_level
        level = self.rules.accuracy_level if asked is None else asked
        return level == 4 and "matmul_nbits" in self.rules.forms_for("QuantizedWeight")

    @property
    def context_without_data(self) -> Context:
        """What passes are told that round to nearest."""
        return replace(self.context, data=None)

    def build(self, kinds: tuple[Kind, ...], loss: float) -> Whole:
        """Build the model with weights kept so, by the recipe's method, once."""
        if kinds not in self._models:
            name = f"{self.job.precision} weights, model {len(self._models) + 1}"
            self._models[kinds] = self.built_as(
                name, kinds, self.options(kinds), self.context, loss
            )
        return self._models[kinds]

    def draft(self, kinds: tuple[Kind, ...]) -> Whole:
        """Build a model with rounded weights, which shows its time and size."""
        plain = {"method": "rtn", "scaling": False, "clip": "none"}
        options = self.options(kinds, plain)
        return self.built_as("draft", kinds, options, self.context_without_data, 0.0)

    def built_as(
        self, name: str, kinds: tuple[Kind, ...], options: Options, context: Context, loss: float
    ) -> Whole:
        """Build a model and write it; where all weights are in float it is the float model."""
        if all(kind == FLOAT for kind in kinds):
            return self.floating
        graph = clone(self.graph)
        passes = flow.quantizing_passes(self.job.precision, options, self.job.target)
        stages = Pipeline(passes).run(graph, context)
        path = self.folder / f"{name.replace(' ', '-').replace(',', '')}.onnx"
        onnx_io.save(graph, path)
        floats = _left_in_float(graph, self.layers)
        if name != "draft":
            self.built[name] = (graph, [*self.stages, *stages], kinds)
        return Whole(name, self.job.precision, path, floats=floats, loss=loss, what=counted(kinds))

    def options(self, kinds: Sequence[Kind], others: Mapping[str, Any] | None = None) -> Options:
        """Return the options of passes that keep each layer's weight so."""
        options = {name: dict(values) for name, values in self.job.recipe.passes.items()}
        lines = [kind.line(layer.name) for layer, kind in zip(self.layers, kinds, strict=True)]
        # What else would move layers from what was chosen.
        fixed = {"layers": tuple(lines), "skip_worse": 0, "batch": None, **(others or {})}
        options["weight_only"] = options.get("weight_only", {}) | fixed
        return options

    def settings(self, kind: Kind) -> Settings:
        """Return how a weight is drafted: rounded on its own, with ranges that fit its inputs."""
        options = replace(
            weight_options(self.job),
            bits=kind.bits,  # type: ignore[arg-type]
            group=kind.group,
            method="rtn",
            scaling=False,
        )
        return settings_of(options, self.rules, PassReport(), self.context)


def open_space(
    graph: Graph, base: Workspace, context: Context, assign: Sequence[str]
) -> WeightSpace:
    """Find the layers of a model and what may become of them; write the float model.

    Args:
        graph: The original; it becomes the float graph.
        base: What every search works on.
        context: What passes are told.
        assign: `PATTERN=fp32|int8|int4|int4:32` lines.

    Raises:
        UsageError: The recipe's weights have no bits to choose, or a line of `assign` is wrong.
    """
    job, options = base.job, weight_options(base.job)
    passes = flow.exact_passes(job.recipe.passes, (), job.target)
    stages = Pipeline(passes).run(graph, context)
    graph.name_nodes()
    onnx_io.save(graph, base.folder / "fp32.onnx")
    linear = clone(graph)
    LinearToMatMul.with_options(job.recipe.passes.get(LinearToMatMul.name, {})).run(linear, context)
    layers, _ = find_layers(
        linear, exclude=job.exclude, head=options.head, least=options.min_elements
    )
    wanted = read_assign(assign, layers)
    rules, fewest = rules_of(job), WEIGHT_ONLY[job.precision]
    kinds = [kinds_of(layer, rules, fewest, options.group, wanted) for layer in layers]
    return WeightSpace(
        **base.given(),
        graph=graph,
        linear=linear,
        layers=layers,
        kinds=kinds,
        context=context,
        stages=stages,
    )


def weight_options(job: Job) -> WeightOnly:
    """Return the options of the pass that a search starts from.

    Raises:
        UsageError: They leave nothing to search.
    """
    given = WeightOnly.with_options(job.recipe.passes.get(WeightOnly.name, {}))
    assert isinstance(given, WeightOnly)
    if given.method not in WEIGHT_QUANTIZERS:
        raise UsageError(
            f"the weights of {given.method} have no bits and groups to choose",
            fix=f"search with one of: {', '.join(WEIGHT_QUANTIZERS)}",
        )
    if given.layers:
        raise UsageError(
            "weight_only.layers does not go with --max-drop",
            fix="say it as --assign PATTERN=int8, int4:32 or fp32",
        )
    return replace(given, skip_worse=0, batch=None)


def rules_of(job: Job) -> WeightOnlyRules:
    """Which weights the job's target executes."""
    return job.target.weight_only if job.target.weight_only.forms else ANYTHING


def counted(kinds: Sequence[Kind]) -> str:
    """Say how many layers are kept in which way."""
    counts = Counter(kind.name for kind in kinds)
    return ", ".join(
        f"{count} layer{'s' * (count != 1)} in {name}" for name, count in sorted(counts.items())
    )


def _left_in_float(graph: Graph, layers: Sequence[Layer]) -> tuple[str, ...]:
    """Names of the layers that the pass left in float, asked for or not."""
    plan: Plan = graph.facts.get("plan")
    return tuple(
        layer.name for layer in layers if plan.nodes.get(layer.name, ("float", ""))[0] == "float"
    )
