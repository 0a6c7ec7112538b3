"""Whole models that a search builds, in this process or by tasks, and whether they are the same."""

from dataclasses import replace

from planted import CNN

from qgraph import onnx_io
from qgraph.data import open_data
from qgraph.job import resolve
from qgraph.preparation import job_context
from qgraph.search.candidates import Candidates
from qgraph.search.prepared import prepare
from qgraph.tasks import Task

VIT = CNN.with_name("digits_vit.onnx")


def prepared_vit(digits):
    """A calibrated network, and the job that it is built for."""
    graph = onnx_io.load(VIT)
    job = resolve("cuda", "int8", "fast", (), (), None, searching=True)
    data = open_data({"image": digits.train_x[:24]}, graph.signature())
    return prepare(graph, job, job_context(job, data, None)), job


def made(prepared, folder, executor):
    """Every candidate, solved, by precision: model, explanation and stages."""
    folder.mkdir()
    candidates = Candidates(prepared[0], prepared[1], folder, executor)
    candidates.finish(candidates.all())
    assert not any(whole.draft for whole in candidates.all())
    models = {whole.precision: whole for whole in candidates.all()}
    found = {}
    for precision, (graph, stages) in candidates.built.items():
        again = folder / "again.onnx"
        onnx_io.save(graph, again)
        assert models[precision].model.exists()
        assert models[precision].judged is None or models[precision].judged.exists()
        found[precision] = (
            onnx_io.load(models[precision].model),
            onnx_io.load(again),
            None if graph.facts.plan is None else graph.facts.plan.nodes,
            [(stage.name, stage.report.changed) for stage in stages],
            None if models[precision].judged is None else models[precision].judged.name,
        )
    return found, candidates.notes


def same(one, other):
    assert [n.op_type for n in one.nodes()] == [n.op_type for n in other.nodes()]
    assert [[v and v.name for v in n.inputs] for n in one.nodes()] == [
        [v and v.name for v in n.inputs] for n in other.nodes()
    ]
    theirs = {value.name: value for value in other.initializers}
    assert theirs.keys() == {value.name for value in one.initializers}
    for value in one.initializers:
        mine, his = value.const_value, theirs[value.name].const_value
        assert mine.dtype == his.dtype and mine.tobytes() == his.tobytes(), value.name


def mortal_task(marker):
    """A kind of task whose worker dies over the float16 model, the first time; `marker` then exists."""

    class Mortal(Task):
        @classmethod
        def of(cls, key, function, /, **arguments):
            found = Task.of(key, function, **arguments)
            if key != "building fp16":
                return found
            more = {**arguments, "marker": marker}
            return replace(found, function="taskwork:build_or_die", arguments=more)

    return Mortal


def assert_all_same(alone, shared):
    """Compare what `made` returned twice."""
    assert alone.keys() == shared.keys()
    for precision, (model, graph, *rest) in alone.items():
        same(model, shared[precision][0])
        same(graph, shared[precision][1])
        assert rest == list(shared[precision][2:])
