"""Whole models built by tasks are those of one process."""

from dataclasses import replace
from pathlib import Path

import pytest
from planted import CNN

from qgraph import onnx_io
from qgraph.data import open_data
from qgraph.job import resolve
from qgraph.preparation import job_context
from qgraph.search.candidates import Candidates
from qgraph.search.prepared import prepare
from qgraph.tasks import Task, open_executor

VIT = CNN.with_name("digits_vit.onnx")


@pytest.fixture(scope="module")
def prepared(digits):
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


def test_workers_build_what_one_process_builds(prepared, tmp_path):
    alone, notes = made(prepared, tmp_path / "alone", None)
    with open_executor(2) as executor:
        shared, other_notes = made(prepared, tmp_path / "tasks", executor)
    assert alone.keys() == shared.keys() and {"fp16", "fp8", "int4", "int8-weights"} <= set(alone)
    assert notes == other_notes
    for precision, (model, graph, *rest) in alone.items():
        same(model, shared[precision][0])
        same(graph, shared[precision][1])
        assert rest == list(shared[precision][2:])


def test_a_worker_that_dies_changes_nothing(prepared, tmp_path, monkeypatch):
    marker = str(tmp_path / "died")

    class Mortal(Task):
        @classmethod
        def of(cls, key, function, /, **arguments):
            found = Task.of(key, function, **arguments)
            if key != "building fp16":
                return found
            more = {**arguments, "marker": marker}
            return replace(found, function="taskwork:build_or_die", arguments=more)

    monkeypatch.setattr("qgraph.search.candidates.Task", Mortal)
    with open_executor(2) as executor:
        found, _ = made(prepared, tmp_path / "tasks", executor)
    assert Path(marker).exists() and "fp16" in found


def test_what_can_not_be_built_is_noted_by_tasks_too(prepared, tmp_path):
    job = resolve("cuda", "int8", "fast", (), ("weight_only.group=48",), None, searching=True)
    other = replace(prepared[0], options={**prepared[0].options, "weight_only": {"group": 48}})
    with open_executor(2) as executor:
        _, notes = made((other, job), tmp_path / "tasks", executor)
    assert "no groups of 48" in notes["int4"] and "no groups of 48" in notes["int8-weights"]
