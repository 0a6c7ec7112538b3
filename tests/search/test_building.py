"""Whole models built by tasks are those of one process."""

from dataclasses import replace
from pathlib import Path

import pytest
from builtmodels import assert_all_same, made, mortal_task, prepared_vit

from qgraph.job import resolve
from qgraph.tasks import open_executor


@pytest.fixture(scope="module")
def prepared(digits):
    return prepared_vit(digits)


def test_workers_build_what_one_process_builds(prepared, tmp_path):
    alone, notes = made(prepared, tmp_path / "alone", None)
    with open_executor(2) as executor:
        shared, other_notes = made(prepared, tmp_path / "tasks", executor)
    assert {"fp16", "fp8", "int4", "int8-weights"} <= set(alone) and notes == other_notes
    assert_all_same(alone, shared)


def test_a_worker_that_dies_changes_nothing(prepared, tmp_path, monkeypatch):
    marker = str(tmp_path / "died")
    monkeypatch.setattr("qgraph.search.candidates.Task", mortal_task(marker))
    with open_executor(2) as executor:
        found, _ = made(prepared, tmp_path / "tasks", executor)
    assert Path(marker).exists() and "fp16" in found


def test_what_can_not_be_built_is_noted_by_tasks_too(prepared, tmp_path):
    job = resolve("cuda", "int8", "fast", (), ("weight_only.group=48",), None, searching=True)
    other = replace(prepared[0], options={**prepared[0].options, "weight_only": {"group": 48}})
    with open_executor(2) as executor:
        _, notes = made((other, job), tmp_path / "tasks", executor)
    assert "no groups of 48" in notes["int4"] and "no groups of 48" in notes["int8-weights"]
