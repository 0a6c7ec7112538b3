"""The search for the bits and groups of weights, layer by layer; activations stay in float."""

from collections.abc import Sequence

from qgraph.errors import QGraphError, UsageError
from qgraph.graph import Graph
from qgraph.job import Job
from qgraph.preparation import job_context
from qgraph.recipe import Recipe
from qgraph.runtime.backend import Session
from qgraph.search import pareto
from qgraph.search.choice import Choice, choose, weigh
from qgraph.search.costs import Engine
from qgraph.search.goal import Goal
from qgraph.search.judge import Verdict
from qgraph.search.observed import observe
from qgraph.search.outcome import Outcome, prove_best
from qgraph.search.parts import calibrating
from qgraph.search.proof import Proof
from qgraph.search.refine import Point, Refined, or_inf, refine
from qgraph.search.refine import front as front_of
from qgraph.search.weights.estimate import estimate
from qgraph.search.weights.kinds import FLOAT, Kind
from qgraph.search.weights.layer_costs import layer_costs, names_of
from qgraph.search.weights.looked import Looked
from qgraph.search.weights.record import search_json, taken
from qgraph.search.weights.space import (
    WeightSpace,
    counted,
    open_space,
    rules_of,
    weight_options,
)
from qgraph.search.whole import Whole
from qgraph.search.workspace import Workspace
from qgraph.target import WEIGHT_ONLY

# Each is solved for on data, which takes longer than all the rest.
MOST_BUILT = 6
# What loses so many times less than the best stands by for the proof.
_SAFER = 2


def search(
    graph: Graph,
    base: Workspace,
    answering: Session,
    *,
    assign: Sequence[str],
    asked: pareto.Asked,
) -> Outcome:
    """Search, and prove what was found.

    Args:
        graph: The original; it becomes the float graph.
        base: What every search works on.
        answering: The original, open.
        assign: `PATTERN=fp32|int8|int4|int4:32` lines, what the search may not decide.
        asked: What is wanted of the front between loss and aim.

    Raises:
        UsageError: A line of `assign` is wrong, the model has no layer to decide about, or there is no
            such point.
        DataError, EngineError: What the names say.
    """
    held_out = base.job.recipe.verify.held_out
    data = calibrating(graph, held_out, base.parts.calibration)
    space = open_space(graph, base, job_context(base.job, data, None), assign)
    if not any(kind != FLOAT for kinds in space.kinds for kind in kinds):
        raise UsageError(
            f"no weight of the model may be in {base.job.precision}",
            fix="`qgraph compile --precision int4` and `qgraph explain` say why",
        )
    front = asked.kept()
    found = Looked() if front else _look(space)
    front = front or _front(space, found, asked.count)
    asked.tell(front, base.job.warn)
    if asked.pick is not None:
        picked = _picked(space, pareto.pick(front, asked.pick))
        models, only = [picked, space.floating], picked.name
    else:
        models, only = [*_worth_proving(space, found), space.floating], None
    proof = prove_best(space, models, answering, only=only, first=found.first)
    files = {"search.json": search_json(space, found, front, proof)}
    if front:
        files["pareto.csv"] = pareto.table_csv(front)
    written, stages, _ = space.built.get(proof.whole.name, (None, [], ()))
    return Outcome(
        proof=proof, recipe=_recipe(space, proof), graph=written, stages=stages, files=files
    )


def check(job: Job) -> None:
    """Refuse a recipe or target that leaves no bits to choose, before anything runs.

    Raises:
        UsageError: It does.
    """
    options = weight_options(job)
    fewest, rules = WEIGHT_ONLY[job.precision], rules_of(job)
    symmetric = rules.symmetric if options.symmetric is None else options.symmetric
    rules.check(options.method, True, fewest, options.group, symmetric)


def _look(space: WeightSpace) -> Looked:
    """Measure losses and costs, choose, build and verify."""
    found = Looked()
    coarsest = tuple(kinds[-1] for kinds in space.kinds)
    with space.timing("timing whole models"):
        draft = space.draft(coarsest)
        found.first = space.times.whole([space.floating, draft], space.sample)
    ours, floating = found.first.of("draft"), found.first.of("fp32")
    if ours is None or floating is None:
        found.notes["draft"] = "no engine runs it"
        return found
    with space.timing("measuring sensitivity"):
        found.losses = estimate(space)
    with space.timing("timing layers"):
        seen = observe(space.floating.model, names_of(space.layers), space.sample)
        found.costs = layer_costs(space, seen, ours.engine)
    problem = found.put_problem(
        space.kinds,
        coarsest,
        float_ms=floating.p50_ms,
        draft_ms=ours.p50_ms,
        draft_bytes=ours.bytes,
    )
    with space.timing("choosing and verifying"):
        found.refined = refine(
            problem,
            space.goal,
            lambda choice: _verified(space, found, choice, ours.engine),
            MOST_BUILT,
        )
        found.refined = _beside(space, found, ours.engine)
    return found


def _beside(space: WeightSpace, found: Looked, engine: Engine) -> Refined:
    """Verify models too that keep all weights alike, where they would be better than the best mix.

    What is predicted of a mix is uncertain; where one of them is better after all, it is taken.
    """
    problem, refined, goal = found.problem, found.refined, space.goal
    assert problem is not None and refined is not None
    best, points = refined.best, list(refined.points)
    if goal.max_drop is None:
        return refined
    shared = [kind for kind in found.able[0] if all(kind in each for each in found.able)]
    for kind in shared:
        choice = weigh(problem, [each.index(kind) for each in found.able])
        known = any(point.choice.options == choice.options for point in points)
        fits = choice.time <= or_inf(goal.max_ms) and choice.bytes <= or_inf(goal.max_bytes)
        better = best is not None and _aim(goal, choice) < _aim(goal, best.choice)
        if kind == FLOAT or known or not fits or not better:
            continue
        points.append(Point(choice, _verified(space, found, choice, engine)))
        if points[-1].verdict.holds(goal.max_drop):
            best = points[-1]
    return Refined(tuple(points), best, refined.nearest if best is None else None)


def _aim(goal: Goal, choice: Choice) -> float:
    """What is to be made small."""
    aims = {"latency": choice.time, "size": choice.bytes, "memory": choice.memory}
    return aims[goal.optimize]


def _verified(space: WeightSpace, found: Looked, choice: Choice, engine: Engine) -> Verdict:
    """Build the model of a choice by the recipe's method and score it."""
    kinds = found.kinds(choice)
    verdict = space.verdict(space.build(kinds, choice.loss), engine)
    space.job.listener.info(f"{counted(kinds)}: worse by {verdict.drop:.4g}")
    return verdict


def _worth_proving(space: WeightSpace, found: Looked) -> list[Whole]:
    """The models that keep the promise on the samples searched with, and one that loses less."""
    refined, goal = found.refined, space.goal
    best = None if refined is None else refined.best or refined.nearest
    if refined is None or best is None or found.problem is None:
        return []
    holding = [point.choice for point in refined.points if point.verdict.holds(goal.max_drop)]
    choices: dict[tuple[int, ...], Choice] = {c.options: c for c in [best.choice, *holding]}
    if not any(choice.loss * _SAFER <= best.choice.loss for choice in choices.values()):
        safer = choose(
            found.problem,
            goal.optimize,
            max_loss=best.choice.loss / _SAFER,
            max_time=or_inf(goal.max_ms),
            max_bytes=or_inf(goal.max_bytes),
        )
        if safer is not None:
            choices.setdefault(safer.options, safer)
    with space.timing("building whole models"):
        built = []
        for choice in choices.values():
            try:
                built.append(space.build(found.kinds(choice), choice.loss))
            except (QGraphError, ArithmeticError) as error:
                if choice is best.choice:
                    raise
                found.notes[counted(found.kinds(choice))] = str(error)
    return built


def _front(space: WeightSpace, found: Looked, count: int) -> list[pareto.Row]:
    """Build and measure the front, in the engine that is fastest for the draft; empty for 0."""
    problem, draft = found.problem, found.first.of("draft") if found.first else None
    if not count or problem is None or draft is None:
        return []

    def ways(whole: Whole) -> dict[str, str]:
        kinds = space.built[whole.name][2] if whole.name in space.built else ()
        names = [kind.name for kind in kinds or (FLOAT,) * len(space.layers)]
        return dict(zip((layer.name for layer in space.layers), names, strict=True))

    with space.timing("measuring the front"):
        choices = front_of(problem, space.goal, count)
        models = [space.build(found.kinds(choice), choice.loss) for choice in choices]
        return pareto.measure(space, models, draft.engine, ways, lambda each: each != FLOAT.name)


def _picked(space: WeightSpace, row: pareto.Row) -> Whole:
    """Build a point of the front.

    Raises:
        UsageError: The front is not one of these layers and bits.
    """
    kinds: list[Kind] = []
    for layer, own in zip(space.layers, space.kinds, strict=True):
        wanted = row["ways"].get(layer.name)
        fitting = [kind for kind in own if kind.name == wanted]
        if not fitting:
            raise UsageError(
                f"the front that is there has {layer.name} in {wanted or 'nothing'}",
                fix="search again with --pareto, or pick with the options of that search",
            )
        kinds.append(fitting[0])
    with space.timing("building whole models"):
        return space.build(tuple(kinds), float(row["predicted_loss"]))


def _recipe(space: WeightSpace, proof: Proof) -> Recipe:
    """Return the recipe with the lines that give each layer what it has."""
    recipe = space.job.recipe
    if proof.whole.is_float:
        return recipe
    return recipe.model_copy(update={"passes": space.options(taken(space, proof))})
