"""What a search for bits found out, step by step."""

from dataclasses import dataclass, field

from qgraph.search.choice import Choice, Option, Problem
from qgraph.search.refine import Refined
from qgraph.search.weights.kinds import FLOAT, Kind
from qgraph.search.weights.layer_costs import LayerCost
from qgraph.search.weights.losses import Losses
from qgraph.search.whole import Round

# Gains on the whole model and those of its layers differ by threads and caches, not by more.
_LEAST_SCALE, _MOST_SCALE = 0.2, 5.0


@dataclass(eq=False)
class Looked:
    """What a search found out.

    Attributes:
        first: Float model and draft, timed before the search.
        losses: What each layer loses in each way.
        costs: What it takes.
        problem: What is decided; its options are those ways that can be written.
        able: For each layer, the ways that are its options in `problem`.
        refined: What was chosen and verified.
        notes: By model, why there is none.
    """

    first: Round | None = None
    losses: Losses | None = None
    costs: list[list[LayerCost | None]] = field(default_factory=list)
    problem: Problem | None = None
    able: list[list[Kind]] = field(default_factory=list)
    refined: Refined | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def kinds(self, choice: Choice) -> tuple[Kind, ...]:
        """How a choice keeps each layer's weight."""
        return tuple(kinds[i] for kinds, i in zip(self.able, choice.options, strict=True))

    def put_problem(
        self,
        kinds: list[list[Kind]],
        draft: tuple[Kind, ...],
        *,
        float_ms: float,
        draft_ms: float,
        draft_bytes: int,
    ) -> Problem:
        """Put losses and costs together, such that both ends take what was measured of them.

        Args:
            kinds: For each layer, the ways to keep its weight.
            draft: How the draft keeps them.
            float_ms: Latency of the float model, milliseconds.
            draft_ms: Latency of the draft.
            draft_bytes: Size of the draft.
        """
        assert self.losses is not None
        plain, coded, size = 0.0, 0.0, 0
        for own, each, way in zip(self.costs, kinds, draft, strict=True):
            cost = own[each.index(way)]
            # Where the float weight can't be told apart from its codes, nothing is won by them.
            base = own[each.index(FLOAT)] if FLOAT in each else cost
            if cost is not None:
                plain += cost.ms if base is None else base.ms
                coded, size = coded + cost.ms, size + cost.bytes
        gain = float_ms - draft_ms
        scale = gain / (plain - coded) if gain > 0 and plain > coded else 1.0
        scale = min(max(scale, _LEAST_SCALE), _MOST_SCALE)
        units, self.able = [], []
        for own, each, losses in zip(self.costs, kinds, self.losses.output, strict=True):
            pairs = [(k, c, x) for k, c, x in zip(each, own, losses, strict=True) if c is not None]
            self.able.append([kind for kind, _, _ in pairs])
            units.append(
                [
                    Option(kind.name, float(loss), scale * cost.ms, cost.bytes)
                    for kind, cost, loss in pairs
                ]
            )
        rest = draft_ms - scale * coded
        self.problem = Problem(units, (), rest, draft_bytes - size)
        return self.problem
