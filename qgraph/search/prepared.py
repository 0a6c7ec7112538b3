"""A model calibrated once, from which any mix of float and integer layers is made in no time.

Every pass of int8 decides layer by layer: ranges are those of float values, weights are rounded
for float inputs, and biases are corrected behind float inputs. So what one calibration finds holds
for every choice of layers.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from glob import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph import flow
from qgraph.context import Context
from qgraph.encoding import Encoding
from qgraph.facts import Placement, Plan, QuantizedWeight
from qgraph.graph import Graph
from qgraph.job import Job
from qgraph.pipeline import Hook, Pass, Pipeline, Stage
from qgraph.search.wide import Encodings, widen

_CORRECT = "correct_bias"


@dataclass(frozen=True, eq=False)
class Bias:
    """A bias as a layer in integers wants it.

    Attributes:
        holder: Name of the node that adds it.
        index: Which of its inputs it is.
        array: The bias, float32 [channels].
        planned: How it is quantized; None where it stays in float.
    """

    holder: str
    index: int
    array: NDArray[np.float32]
    planned: Placement | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A float graph and what calibration found for it.

    Attributes:
        graph: The float graph, with the plan that leaves in float only what must stay there.
        biases: By name of the layer, its corrected bias.
        stages: What the passes did.
        context: What they were told.
        options: Options of passes.
    """

    graph: Graph
    biases: dict[str, Bias]
    stages: list[Stage]
    context: Context
    options: dict[str, dict[str, Any]]

    @property
    def plan(self) -> Plan:
        """The plan that leaves in float only what must stay there."""
        plan: Plan = self.graph.facts.get("plan")
        return plan

    @property
    def encodings(self) -> dict[str, Encoding]:
        """By value name, the encodings of activations."""
        encodings: dict[str, Encoding] = self.graph.facts.get("encodings")
        return encodings

    @property
    def weights(self) -> dict[tuple[str, int], QuantizedWeight]:
        """By (node name, input index), the quantized weights."""
        weights: dict[tuple[str, int], QuantizedWeight] = self.graph.facts.get("weights")
        return weights

    def mixed(
        self, floats: Collection[str], wide: Collection[str] = (), codes: Encodings | None = None
    ) -> tuple[Graph, list[Stage]]:
        """Return the model with some nodes left in float, and what all passes did.

        Args:
            floats: Names of nodes that stay in float.
            wide: Names of nodes with activations in 16 bits.
            codes: By value name, encodings in 16 bits.
        """
        graph = clone(self.graph)
        exclude = (*self.context.exclude, *map(escape, sorted(floats)))
        context = replace(self.context, exclude=exclude)
        stages = Pipeline(flow.build(("plan",), self.options)).run(graph, context)
        plan: Plan = graph.facts.get("plan")
        if plan.activations.keys() <= self.encodings.keys():
            graph.facts.encodings = self.encodings
            graph.facts.weights = {key: self.weights[key] for key in plan.weights}
        else:  # codes of a value that the full plan has no use for
            passes = flow.build(("calibrate", "quantize_weights"), self.options)
            stages += Pipeline(passes, given=graph.facts.present()).run(graph, context)
        if wide and codes:
            known: Encodings = graph.facts.get("encodings")
            found = widen(graph, self.context.target, known, codes, wide)
            graph.facts.encodings, plan.recoded = found.encodings, found.recoded
        self._correct(graph, plan)
        passes = flow.build(flow.INSERTING, self.options)
        stages += Pipeline(passes, given=graph.facts.present()).run(graph, context)
        before = [stage for stage in self.stages if stage.name != "plan"]
        return graph, [*before, *stages]

    def _correct(self, graph: Graph, plan: Plan) -> None:
        nodes = {node.name: node for node in graph.nodes()}
        for name in dict.fromkeys(name for name, _ in plan.weights):
            bias = self.biases.get(name)
            if bias is None:
                continue
            value = graph.constant(f"{name}_bias", bias.array)
            graph.set_input(nodes[bias.holder], bias.index, value)
            if bias.planned is not None:
                plan.biases[name, bias.index] = bias.planned
        graph.drop_unread_initializers()


def prepare(
    graph: Graph,
    job: Job,
    context: Context,
    hooks: list[Hook] | None = None,
    own: Sequence[Pass] = (),
) -> Prepared:
    """Run every pass of int8 but those that write Q/DQ.

    Args:
        graph: The original; it becomes the float graph.
        job: Target and options.
        context: What passes are told, calibration data with it.
        hooks: Called after every pass.
        own: The caller's passes, as `compile` takes them.

    Raises:
        DataError, ModelError, EngineError: What the names say.
    """
    options = {name: dict(values) for name, values in job.recipe.passes.items()}
    stages = Pipeline(flow.exact_passes(options, own), hooks=hooks or []).run(graph, context)
    # Operators of the target's own would hide values that the plan names.
    plain = replace(job.target, contributed=None)
    passes = flow.quantizing_passes("int8", options, plain)
    calibrating = [p for p in passes if p.name not in (_CORRECT, *flow.INSERTING)]
    given = graph.facts.present()
    stages += Pipeline(calibrating, hooks=hooks or [], given=given).run(graph, context)
    corrected = clone(graph)
    for name in ("plan", "encodings", "weights"):
        setattr(corrected.facts, name, graph.facts.get(name))
    before = dict(graph.facts.get("plan").biases)
    passes = flow.build((_CORRECT,), options)
    given = corrected.facts.present()
    stages += Pipeline(passes, hooks=hooks or [], given=given).run(corrected, context)
    biases = _biases(graph, corrected)
    graph.facts.get("plan").biases = before
    return Prepared(graph, biases, stages, context, options)


def clone(graph: Graph) -> Graph:
    """Return a copy without facts; constants are shared."""
    return Graph(graph.model.clone(), source=graph.source, sparse=graph.sparse)


def _biases(graph: Graph, corrected: Graph) -> dict[str, Bias]:
    """The biases in which the two graphs differ, by layer."""
    from qgraph.passes.correct_bias import correctable_layers

    plan: Plan = corrected.facts.get("plan")
    nodes = {node.name: node for node in graph.nodes()}
    found = {}
    for layer in correctable_layers(corrected):
        holder = nodes[layer.holder.name]
        old = holder.inputs[layer.index] if layer.index < len(holder.inputs) else None
        new, name = layer.bias, layer.node.name or ""
        array = corrected.array(new)
        if new is None or array is None or (old is not None and old.name == new.name):
            continue
        planned = plan.biases.get((name, layer.index))
        found[name] = Bias(layer.holder.name or "", layer.index, array, planned)
    return found
