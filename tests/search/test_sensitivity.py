"""The sweep against whole models, its cache, and the estimate for models with many units."""

from pathlib import Path

import numpy as np
import pytest
from planted import CNN

from qgraph import onnx_io
from qgraph.cache import Cache
from qgraph.data import open_data
from qgraph.job import resolve
from qgraph.metrics import metric
from qgraph.preparation import job_context
from qgraph.runtime.reference import open_reference
from qgraph.search import sensitivity
from qgraph.search.observed import observe, sweep_bytes
from qgraph.search.prepared import prepare
from qgraph.search.segments import read_segments, write_segments
from qgraph.search.sensitivity import measure
from qgraph.search.tasks import run_tasks, sweeping
from qgraph.search.units import find_units, links
from qgraph.tasks import open_executor

NAMES = ["digits_cnn", "digits_vit", "digits_gru"]


@pytest.fixture(scope="module", params=NAMES)
def cut(request, digits, tmp_path_factory):
    """A prepared network, its units, its segments in a folder, and labelled samples."""
    folder = tmp_path_factory.mktemp(request.param)
    graph = onnx_io.load(CNN.with_name(f"{request.param}.onnx"))
    data = {"image": digits.train_x[:48], "label": digits.train_y[:48]}
    job = resolve("cpu", "int8", "fast", (), ("correct_bias.enabled=true",), None)
    dataset = open_data(data, graph.signature(), labelled=True)
    prepared = prepare(graph, job, job_context(job, dataset, None))
    units = find_units(prepared.graph, job.target)
    (folder / "segments").mkdir()
    write_segments(prepared, units, folder / "segments")
    onnx_io.save(prepared.graph, folder / "float.onnx")
    return prepared, units, folder, list(dataset.labelled())[:12], job.target


def outputs(model: Path, samples):
    with open_reference(model) as session:
        return np.concatenate([next(iter(session.run(s.feeds).values())) for s in samples])


def loss_of(prepared, folder, floats, samples):
    graph, _ = prepared.mixed(floats)
    onnx_io.save(graph, folder / "mixed.onnx")
    exact, got = outputs(folder / "float.onnx", samples), outputs(folder / "mixed.onnx", samples)
    return np.square(got - exact).sum() / np.square(exact).sum()


def test_one_unit_in_integers_loses_what_the_sweep_says(cut):
    prepared, units, folder, samples, target = cut
    found = measure(folder / "segments", samples, metric=metric("top1"), together=True)
    ends = {link.writer.unit for link in links(prepared.graph, units, target)}
    for unit in (units[0], units[len(units) // 2], units[-1]):
        others = [each.name for each in units if each is not unit]
        whole = loss_of(prepared, folder, others, samples)
        # Codes that floats read lose as well; the two errors are all but independent.
        written = found.written[unit.index] if unit.index in ends else 0
        assert whole == pytest.approx(found.loss[unit.index] + written, rel=0.6)
    assert found.carried.all() and found.samples == len(samples)
    assert np.isfinite(found.drop).all() and found.loss.min() > 0


def test_losses_add_up(cut):
    prepared, _, folder, samples, _ = cut
    found = measure(folder / "segments", samples, together=True)
    assert found.drop is None
    # Within 3 dB, where all units together have no more than 30 dB less than one alone.
    assert loss_of(prepared, folder, (), samples) == pytest.approx(found.loss.sum(), rel=1.0)


def test_batches_and_shares_change_nothing(cut):
    _, _, folder, samples, _ = cut
    one = measure(folder / "segments", samples, metric=metric("top1"))
    other = measure(
        folder / "segments", samples, metric=metric("top1"), together=True, sample_bytes=1e9
    )
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-3, atol=1e-9)
    np.testing.assert_array_equal(one.drop, other.drop)


def test_worker_processes_find_the_same_to_the_bit(cut):
    _, _, folder, samples, _ = cut
    options = {"metric": metric("top1"), "together": True}
    alone = measure(folder / "segments", samples, **options)
    with open_executor(2, None) as executor:
        run = sweeping(executor, folder / "segments")
        found = measure(folder / "segments", samples, run=run, **options)
    np.testing.assert_array_equal(found.loss, alone.loss)
    np.testing.assert_array_equal(found.written, alone.written)
    np.testing.assert_array_equal(found.drop, alone.drop)


def test_what_was_measured_is_not_measured_again(cut, tmp_path):
    _, _, folder, samples, _ = cut
    store, ran = Cache(tmp_path), []

    def run(function, tasks):
        ran.append(len(tasks))
        return run_tasks(function, tasks)

    def stopped(function, tasks):
        yield from list(run_tasks(function, tasks[:1]))
        raise KeyboardInterrupt

    options = {"together": True, "store": store, "sample_bytes": 1e9, "metric": metric("top1")}
    with pytest.raises(KeyboardInterrupt):
        measure(folder / "segments", samples, run=stopped, **options)
    first = measure(folder / "segments", samples, run=run, **options)
    again = measure(folder / "segments", samples, run=run, **options)
    assert ran[0] >= 1 and ran[1] == 0
    assert ran[0] == len(list(tmp_path.iterdir())) - 1
    np.testing.assert_array_equal(first.loss, again.loss)
    measure(folder / "segments", samples[1:], run=run, **options)
    assert ran[2] > 0


def test_units_between_those_that_are_measured_are_estimated(cut, monkeypatch):
    _, units, folder, samples, _ = cut
    exact = measure(folder / "segments", samples, together=True)
    monkeypatch.setattr(sensitivity, "MOST", max(2, len(units) // 2))
    found = measure(folder / "segments", samples, metric=metric("top1"), together=True)
    if len(units) > 2:
        assert 0 < found.carried.sum() < len(units)
    np.testing.assert_array_equal(np.isnan(found.drop), ~found.carried)
    np.testing.assert_allclose(found.loss[found.carried], exact.loss[found.carried], rtol=1e-6)
    assert (np.abs(np.log10(found.loss / exact.loss)) < 1.5).all()


def test_memory_is_known_beforehand(cut):
    prepared, _, folder, samples, _ = cut
    names = [value.name for node in prepared.graph.nodes() for value in node.outputs]
    seen = observe(folder / "float.onnx", names, samples[0].feeds)
    segments = read_segments(folder / "segments")
    kept = {name for segment in segments.parts for name in (*segment.reads, *segment.keeps)}
    largest = max(seen[name].nbytes for name in kept)
    assert sweep_bytes(segments, seen) >= largest


def test_with_floats_as_units_every_node_is_in_one_segment(cut):
    prepared, _, _, _, target = cut
    units = find_units(prepared.graph, target, floats=True)
    nodes = [node for unit in units for node in (*unit.nodes, *unit.tail)]
    assert len(nodes) == len(set(nodes))
    assert set(nodes) == {n for n in prepared.graph.nodes() if n.op_type != "Constant"}
    ends = links(prepared.graph, units, target, floats=True)
    assert len({link.value for link in ends}) == len(ends)
    # What crosses from one segment to another is among them, up to what only hands values on.
    owner = {node: unit.index for unit in units for node in (*unit.nodes, *unit.tail)}
    known = {link.value for link in ends}
    for node in nodes:
        rule = target.rule(node.op_type)
        if rule is not None and rule.output == "same":
            continue
        for out in node.outputs:
            outside = any(owner[use.node] != owner[node] for use in out.uses() if use.node in owner)
            floats = out.dtype is not None and out.dtype.name == "FLOAT"
            assert out in known or not (outside and floats) or _handed_on(out, target, owner)


def _handed_on(value, target, owner):
    """Whether all readers in other segments only hand the value on to its own segment."""
    home = owner[value.producer()]
    for use in value.uses():
        if owner[use.node] == home:
            continue
        rule = target.rule(use.node.op_type)
        if rule is None or rule.output != "same":
            return False
    return True
