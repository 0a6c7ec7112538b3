"""Metrics: what a model's outputs on labelled data are worth, sample by sample."""

from typing import Any

from qgraph.errors import unknown_name
from qgraph.metrics.function import FunctionMetric
from qgraph.metrics.metric import Metric
from qgraph.registry import by_name

# One line a metric.
METRICS = [
    "qgraph.metrics.topk:Top1",
    "qgraph.metrics.topk:Top5",
    "qgraph.metrics.agreement:Agreement",
    "qgraph.metrics.perplexity:Perplexity",
    "qgraph.metrics.spearman:Spearman",
    "qgraph.metrics.cer:CharacterErrors",
]


def metrics() -> dict[str, type[Metric]]:
    """Every registered metric by name."""
    return by_name(METRICS)


def metric(name: str, *, output: str | None = None, label: str | None = None) -> Metric:
    """Return the metric called `name`, or that of the user's own `package.module:function`.

    Args:
        name: A name in `metrics()`, or a function's (see `qgraph.metrics.function`).
        output: Output that it reads; None where only one can be meant.
        label: Label that it reads; None for one under a usual name.

    Raises:
        UsageError: There is no such metric; the nearest name is suggested.
        DataError: The function can't be imported.
    """
    from qgraph.data.functions import is_function_spec

    known: dict[str, Any] = metrics()
    if name in known:
        chosen: Metric = known[name](output=output, label=label)
        return chosen
    if is_function_spec(name):
        return FunctionMetric.load(name, output, label)
    raise unknown_name("metric", name, [*known, "module:function"])
