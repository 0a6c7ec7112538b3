"""The search for a mix of precisions: what each unit computes in."""

from collections.abc import Sequence

from qgraph import onnx_io
from qgraph.graph import Graph
from qgraph.pipeline import Stage
from qgraph.preparation import job_context
from qgraph.runtime.backend import Session
from qgraph.search import offers, pareto
from qgraph.search.costs_file import costs_json
from qgraph.search.estimates import Estimated, Known
from qgraph.search.found import Found
from qgraph.search.mixes import Mixes
from qgraph.search.observed import Seen, observe, sweep_bytes
from qgraph.search.offered import Offered, offer
from qgraph.search.outcome import Outcome, prove_best
from qgraph.search.parts import calibrating
from qgraph.search.prepared import prepare
from qgraph.search.problem import Facts, Forced, allowed, assigned, build_problem, read_forced
from qgraph.search.proof import Proof
from qgraph.search.record import search_json
from qgraph.search.refine import front as front_of
from qgraph.search.refine import refine
from qgraph.search.segments import write_segments
from qgraph.search.sensitivity import Sensitivity, measure
from qgraph.search.tasks import run_tasks, sweeping
from qgraph.search.unit_parts import UnitParts
from qgraph.search.units import find_units
from qgraph.search.ways import CODES, DYNAMIC, FLOAT, FLOAT8, PLAIN, WIDE, way
from qgraph.search.whole import Round, Whole
from qgraph.search.workspace import Workspace


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
        assign: `PATTERN=int8`, `PATTERN=fp32` and so on, what the search may not decide.
        asked: What is wanted of the front between loss and aim.
    """
    held_out = base.job.recipe.verify.held_out
    data = calibrating(graph, held_out, base.parts.calibration)
    context = job_context(base.job, data, None, base.executor)
    space = Mixes(**base.given(), prepared=prepare(graph, base.job, context))
    if isinstance(space.times, Estimated):
        space.times.known = Known(space.prepared.graph, space.units, {})
    front = asked.kept()
    found = Found(space) if front else _search(space, assign)
    front = front or _front(space, found, asked.count)
    asked.tell(front, base.job.warn)
    proof = _prove(space, found, front, asked.pick, answering)
    files = {"search.json": search_json(space, found, front, proof)}
    if front:
        files["pareto.csv"] = pareto.table_csv(front)
    if found.costs is not None and found.costs_engine is not None and not space.times.estimated:
        text = costs_json(found.costs, found.costs_engine)
        files |= {"costs.json": text} if text else {}
    written, stages = _graph(space, proof.whole)
    return Outcome(proof=proof, recipe=space.job.recipe, graph=written, stages=stages, files=files)


def _bind(space: Mixes, forced: Forced) -> None:
    """Hold whole models to what the user said of single nodes."""
    wanted = {unit.name: assigned(unit, forced) for unit in space.units}
    space.candidates.floats = [name for name, each in wanted.items() if each == FLOAT]
    space.candidates.only_float = bool(set(wanted.values()) - {FLOAT, None})
    # Scales, and which products have kernels, are those of the whole models.
    kinds = {each.partition("+")[0] for each in wanted.values() if each}
    space.candidates.needed = [each for each in (FLOAT8, WIDE, DYNAMIC) if each in kinds]


def _search(space: Mixes, assign: Sequence[str]) -> Found:
    found = Found(space)
    every = find_units(space.prepared.graph, space.job.target, floats=True)
    forced = read_forced(assign, every)
    _bind(space, forced)
    models, integer_graph = _whole_models(space)
    with space.timing("timing whole models"):
        found.first = first = space.times.whole(models, space.sample)
    space.take(_offered(space, first, forced))
    ways = allowed(space.units, [space.offered.ways(unit) for unit in space.units], forced)
    if all(each == [PLAIN] for each in ways):
        return found
    with space.timing("measuring sensitivity"):
        seen, found.sensitivity = _sensitivity(space)
    ours, floating = first.of(CODES) or first.of(space.offered.half), first.of(FLOAT)
    if ours is None or floating is None:
        return found
    job, graph, half = space.job, space.prepared.graph, space.offered.half
    wide, _ = space.candidates.built.get(WIDE, (None, []))
    pairs = space.offered.pairs
    parts = UnitParts(job, graph, integer_graph, space.units, seen, half, pairs, wide)
    told = space.progress("timing units")
    with space.timing("timing units"):
        found.costs = space.times.units(parts, ways, ours.engine, store=space.store, progress=told)
    found.costs_engine = ours.engine
    facts = Facts(
        space.units,
        space.links,
        ways,
        space.offered,
        found.sensitivity,
        found.costs,
        seen,
        {each.whole.name: each.p50_ms for each in first.timed},
        floating.bytes,
    )
    found.problem, space.options = build_problem(facts)
    with space.timing("choosing and verifying"):
        found.refined = refine(
            found.problem, space.goal, lambda choice: space.verdict(space.mix(choice), ours.engine)
        )
    return found


def _whole_models(space: Mixes) -> tuple[list[Whole], Graph]:
    """Build the float model, all candidates and the model all in integers; return its graph too."""
    with space.timing("building whole models"):
        models = [space.floating, *space.candidates.all()]
        if not space.units:
            return models, space.prepared.graph
        graph, _ = space.prepared.mixed(())
        path = space.folder / "int8.onnx"
        onnx_io.save(graph, path)
    ways = tuple((unit.name, CODES) for unit in space.units)
    what = "all of it that can be in integers"
    return [*models, Whole(CODES, CODES, path, ways=ways, what=what)], graph


def _offered(space: Mixes, first: Round, forced: Forced) -> Offered:
    wanted = [kind for _, precision in forced for kind in precision.partition(":")[0].split("+")]
    built = space.candidates.built
    return offer(space.prepared, space.job.target, space.goal, first, built, wanted)


def _sensitivity(space: Mixes) -> tuple[dict[str, Seen], Sensitivity]:
    folder = space.folder / "segments"
    folder.mkdir()
    segments = write_segments(space.prepared, space.units, folder, space.offered.probes())
    graph = space.prepared.graph
    names = [value.name or "" for node in graph.nodes() for value in node.outputs]
    seen = observe(space.folder / "fp32.onnx", names, space.sample)
    sided = space.metric.sides != ("",)
    found = measure(
        folder,
        space.parts.sensitivity,
        metric=None if sided else space.metric,
        together=space.parts.data.layout.free,
        sample_bytes=sweep_bytes(segments, seen),
        store=space.store,
        run=run_tasks if space.executor is None else sweeping(space.executor, folder),
        progress=space.progress("measuring sensitivity"),
    )
    return seen, found


def _front(space: Mixes, found: Found, count: int) -> list[pareto.Row]:
    """Build and measure the front; empty for a count of 0.

    All are timed in the engine that is fastest for the model all in integers, or in half precision where
    none is.
    """
    problem, first = found.problem, found.first
    ours = None if first is None else first.of(CODES) or first.of(space.offered.half)
    if not count or problem is None or ours is None:
        return []

    def ways(whole: Whole) -> dict[str, str]:
        return dict(whole.ways or ((unit.name, FLOAT) for unit in space.units))

    with space.timing("measuring the front"):
        models = [space.mix(choice) for choice in front_of(problem, space.goal, count)]
        return pareto.measure(
            space, models, ours.engine, ways, lambda each: way(each).unit == CODES
        )


def _prove(
    space: Mixes, found: Found, front: list[pareto.Row], pick: int | None, answering: Session
) -> Proof:
    """Prove the best of what the search offers, or the point of the front that was picked."""
    if pick is not None:
        row = pareto.pick(front, pick)
        if found.first is None:  # the front is an earlier search's: offer what its point has
            with space.timing("building whole models"):
                space.candidates.all()
            space.take(
                _offered(space, Round((), ()), [("", each) for each in row["ways"].values()])
            )
        mixes = [space.build(tuple(row["ways"].items()), float(row["predicted_loss"]))]
    else:
        mixes = offers.mixes(space, found)
    with space.timing("building whole models"):
        offers.finish(space, found)
    models = [*mixes, space.floating, *space.candidates.finished()]
    only = mixes[0].name if pick is not None else None
    return prove_best(space, models, answering, only=only, first=found.first)


def _graph(space: Mixes, whole: Whole) -> tuple[Graph | None, list[Stage]]:
    """Return the graph that was proved; None for the float model, which the passes write again."""
    if whole.ways is not None:
        return space.graph(whole.ways)
    return space.candidates.built.get(whole.precision, (None, []))
