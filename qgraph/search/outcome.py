"""What a search hands to the compile that writes its artifact, and the steps that all end with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qgraph.graph import Graph
from qgraph.pipeline import Stage
from qgraph.recipe import Recipe
from qgraph.runtime.backend import Session
from qgraph.search.judge import Judge
from qgraph.search.proof import Proof, prove
from qgraph.search.whole import Round, Whole
from qgraph.search.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search came to.

    Attributes:
        proof: The model that was proved.
        recipe: What builds it again.
        graph: Its graph; None for the float model, which the passes write again.
        stages: What the passes did for it.
        files: Further files of the artifact, by name.
    """

    proof: Proof
    recipe: Recipe
    graph: Graph | None = None
    stages: list[Stage] = field(default_factory=list)
    files: Mapping[str, str] = field(default_factory=dict)


def prove_best(
    space: Workspace,
    models: Sequence[Whole],
    answering: Session,
    *,
    only: str | None = None,
    first: Round | None = None,
) -> Proof:
    """Time what keeps the promise, and prove the best on samples that nothing was chosen by.

    Args:
        space: The search.
        models: What may be chosen, the float model among them.
        answering: The original, open.
        only: Take the model of this name, whether it keeps the promise or not.
        first: What was timed before the search, for reasons.
    """
    with space.timing("timing what keeps the promise"):
        distinct = list({each.name: each for each in models}.values())
        last = space.times.whole(distinct, space.sample)
        if space.goal.optimize == "memory":
            last = space.times.memory(last, space.sample)
    with space.timing("proving"):
        others = (*space.judge.others, space.judge.theirs) if space.metric.margins else ()
        judge = Judge(space.metric, space.parts.proof, answering, others)
        return prove(space, last, judge, only=only, first=first)
