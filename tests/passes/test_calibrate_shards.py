from pathlib import Path

import numpy as np
import pytest
import taskwork

from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.data import open_data
from qgraph.errors import DataError
from qgraph.passes import calibrate_shards, collect_gram, collect_shards
from qgraph.passes.adaround import _wanted
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.collect_channels import channel_statistics
from qgraph.passes.observers import observers
from qgraph.passes.plan import PlanQuantization
from qgraph.pipeline import Pipeline
from qgraph.target import target
from qgraph.tasks import InProcess
from qgraph.tasks.processes import Processes

DIGITS = Path(__file__).resolve().parents[2] / "models" / "digits"
METHODS = [*sorted(observers()), "auto"]


@pytest.fixture(scope="module")
def images():
    with np.load(DIGITS / "digits.npz") as archive:
        return archive["calibration_x"][:45, None].astype(np.float32) / 16


@pytest.fixture(scope="module")
def file(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, image=images)
    return path


@pytest.fixture(scope="module")
def two():
    with Processes(2) as workers:
        yield workers


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(collect_shards, "_LEAST", 4)
    monkeypatch.setattr(collect_shards, "_EACH", 5)
    monkeypatch.setattr(collect_shards, "_UNKNOWN", 7)


def prepared():
    graph = onnx_io.load(DIGITS / "digits_cnn.onnx")
    Pipeline(flow.exact_passes({})).run(graph, Context(target=target("cpu")))
    return graph


def calibrate(data, tasks, **options):
    """Return ranges, the chosen methods and what was said of progress."""
    graph = prepared()
    given = open_data(data, graph.signature())
    given = given.split(0.2)[0]
    told = []
    context = Context(
        target=target("cpu"), data=given, tasks=tasks, progress=lambda *each: told.append(each)
    )
    passes = [PlanQuantization(), Calibrate(**options)]
    stages = Pipeline(passes, given=graph.facts.present()).run(graph, context)
    chosen = [line for line in stages[-1].report.details if " a second" not in line]
    return graph.facts.ranges, chosen, told


def generated(images):
    return lambda: ({"image": image} for image in images)


@pytest.mark.parametrize("method", METHODS)
def test_every_observer_is_the_same_to_the_bit(method, file, images, small_shards):
    kinds = (file, images, generated(images)) if method == "mse" else (file, images)
    for data in kinds:
        alone, chosen, _ = calibrate(data, None, observer=method)
        found, lines, told = calibrate(data, InProcess(), observer=method)
        assert found == alone and lines == chosen
        counts = [done for what, done, _ in told if what == "calibrating"]
        assert len(counts) > 3 and counts == sorted(counts) and counts[-1] == 36


@pytest.mark.parametrize("method", ["mean-minmax", "moving-average", "entropy", "auto"])
def test_worker_processes_are_no_other(method, file, images, two):
    alone = calibrate(file, None, observer=method)[:2]
    assert calibrate(file, two, observer=method)[:2] == alone
    assert calibrate(images, two, observer=method)[:2] == alone


def test_data_in_files_is_opened_by_the_task(file, images, small_shards):
    graph = prepared()
    data = open_data(file, graph.signature())
    named = list(collect_shards.shards(data, 20))
    assert [(each.first, each.count) for each in named] == [(0, 20), (20, 20), (40, 5)]
    assert all(isinstance(each.feeds, type(data)) for each in named)
    sent = list(collect_shards.shards(open_data(images, graph.signature()), 20, most=30))
    assert [(each.first, each.count) for each in sent] == [(0, 20), (20, 10)]
    assert all(isinstance(each.feeds, list) for each in sent)
    for shards in (named, sent):
        for shard in shards:
            assert len(list(shard)) == len(list(shard)) == shard.count == shard.expected
            for number, feeds in enumerate(shard):
                np.testing.assert_array_equal(feeds["image"][0], images[shard.first + number])


def test_a_worker_killed_in_the_middle_counts_once(file, tmp_path, monkeypatch, small_shards):
    marker = tmp_path / "died"
    monkeypatch.setenv("MARKER", str(marker))
    monkeypatch.setattr(calibrate_shards, "shard_states", taskwork.dying_states)
    with Processes(2) as workers:
        found = calibrate(file, workers, observer="mse")[0]
    assert marker.exists()
    assert found == calibrate(file, None, observer="mse")[0]


def test_the_first_bad_sample_is_named_by_its_number(images, two, small_shards):
    bad = images.copy()
    bad[38] = 3e38  # overflows behind the first layer
    for method in ("minmax", "mse"):
        messages = set()
        for tasks in (None, two):
            with pytest.raises(DataError, match=r"sample 30 makes .* NaN or infinite") as caught:
                calibrate(bad, tasks, observer=method)
            messages.add(str(caught.value))
        assert len(messages) == 1


def test_processors_of_several_kinds_are_warned_of(file):
    graph = prepared()
    tasks = InProcess()
    tasks.processors = {"one", "another"}
    context = Context(target=target("cpu"), data=open_data(file, graph.signature()), tasks=tasks)
    stages = Pipeline([PlanQuantization(), Calibrate()], given=graph.facts.present()).run(
        graph, context
    )
    (line,) = stages[-1].report.warnings
    assert "2 kinds of processors (another, one)" in line


# -- Gram matrices -----------------------------------------------------------------------------


def grams(data, tasks, samples=100):
    graph = prepared()
    nodes = graph.nodes("Conv", "Gemm", "MatMul")
    context = Context(data=open_data(data, graph.signature()), tasks=tasks, seed=3)
    return collect_gram.collect_grams(
        graph,
        list(dict.fromkeys(_wanted(graph, node) for node in nodes)),
        context,
        rows=2000,
        samples=samples,
        memory=1 << 30,
        label="looking",
    )


@pytest.mark.parametrize("samples", [100, 32])
def test_grams_are_the_same_to_the_last_bits(samples, file, images, two):
    for data in (file, images, generated(images)):
        alone = grams(data, None, samples)
        for tasks in (InProcess(), two) if data is file else (InProcess(),):
            for first, second in zip(alone, grams(data, tasks, samples), strict=True):
                assert first.rows == second.rows
                # Some CPUs' BLAS adds float32 up in an order that depends on the threads.
                one, other = first.matrix(centred=True), second.matrix(centred=True)
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(one).max())


def test_channel_statistics_are_the_same_sample_by_sample(file, images, two, small_shards):
    graph = prepared()
    axes = {node.outputs[0].name or "": 1 for node in graph.nodes("Conv")}

    def found(data, tasks):
        context = Context(data=open_data(data, graph.signature()), tasks=tasks)
        return list(channel_statistics(graph, axes, ("min", "max", "mean"), context, "looking"))

    alone = found(file, None)
    assert len(alone) == 45 and all(set(sample) == set(axes) for sample in alone)
    for again in (found(file, two), found(images, InProcess())):
        for first, second in zip(alone, again, strict=True):
            assert {k: v.tobytes() for k, v in first.items()} == {
                k: v.tobytes() for k, v in second.items()
            }
