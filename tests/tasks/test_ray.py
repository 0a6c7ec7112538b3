"""Tasks on a real cluster of several processes, started here."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import taskwork
from builtmodels import assert_all_same, made, mortal_task, prepared_vit

from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.data import open_data
from qgraph.errors import DataError, EngineError, UsageError
from qgraph.passes import calibrate_shards
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.plan import PlanQuantization
from qgraph.pipeline import Pipeline
from qgraph.target import target
from qgraph.tasks import Task, open_executor

try:
    import ray
except ImportError:
    ray = None
DIGITS = Path(__file__).resolve().parents[2] / "models" / "digits"
needs_ray = pytest.mark.skipif(ray is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # A token of this cluster alone, not the user's.
        token = tmp_path_factory.mktemp("ray") / "token"
        token.write_text("0" * 64)
        patch.setenv("MARKER", str(tmp_path_factory.mktemp("marker") / "died"))
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        here = str(Path(__file__).resolve().parent.parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
        with open_executor(2, "local") as found:
            yield found


@needs_ray
def test_results_stand_in_the_order_of_the_tasks(cluster, tmp_path):
    marker = tmp_path / "order"
    tasks = [Task.of(str(i), taskwork.last_first, x=i, marker=str(marker)) for i in range(12)]
    told = []
    found = cluster.run(tasks, lambda done, total: told.append((done, total)))
    assert [x for x, _ in found] == list(range(12))
    assert told == [(i + 1, 12) for i in range(12)]
    assert len({pid for _, pid in found}) >= 2 and os.getpid() not in {pid for _, pid in found}
    assert cluster.workers == 2 and len(cluster.processors) == 1


@needs_ray
def test_a_worker_killed_in_the_middle_is_replaced(cluster, tmp_path):
    marker = str(tmp_path / "died")
    tasks = [Task.of(str(i), taskwork.square, x=i) for i in range(4)]
    tasks.insert(1, Task.of("mortal", taskwork.die_once, x="once", marker=marker))
    assert cluster.run(tasks) == [0, "once", 1, 4, 9]
    assert Path(marker).exists()


@needs_ray
def test_a_task_that_workers_keep_dying_over_is_named(cluster, monkeypatch):
    monkeypatch.setattr(cluster, "_retries", 1)
    with pytest.raises(EngineError, match="shard 7: WorkerCrashedError after 2 attempts"):
        cluster.run([Task.of("shard 7", taskwork.die)])


@needs_ray
def test_what_a_task_raises_arrives_whole(cluster):
    with pytest.raises(DataError) as caught:
        cluster.run([Task.of("shard 1", taskwork.fail)])
    assert str(caught.value) == "sample 3: has a hole; mend it"
    assert "taskwork.py" in caught.value.__notes__[0]


@needs_ray
def test_a_shared_folder_and_its_processor(cluster, tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"abc")
    folder = cluster.share(tmp_path)
    tasks = [Task.of("read", taskwork.read, folder=folder, name="weights.bin")] * 3
    assert cluster.run(tasks) == [b"abc"] * 3
    cores, threads, _ = cluster.run([Task.of("look", taskwork.surroundings)])[0]
    assert (cores, threads) == (1, "1")


def calibrate(data, observer, tasks):
    graph = onnx_io.load(DIGITS / "digits_cnn.onnx")
    Pipeline(flow.exact_passes({})).run(graph, Context(target=target("cpu")))
    context = Context(target=target("cpu"), tasks=tasks)
    context.data = open_data(data, graph.signature())
    passes = [PlanQuantization(), Calibrate(observer=observer)]
    Pipeline(passes, given=graph.facts.present()).run(graph, context)
    return graph.facts.ranges


@needs_ray
def test_a_calibration_with_a_worker_killed_in_the_middle(cluster, tmp_path, monkeypatch):
    data = tmp_path / "digits.npz"
    with np.load(DIGITS / "digits.npz") as archive:
        np.savez(data, image=archive["calibration_x"][:40, None].astype(np.float32) / 16)
    alone = calibrate(data, "mse", None)
    monkeypatch.setattr(calibrate_shards, "shard_states", taskwork.dying_states)
    assert calibrate(data, "mse", cluster) == alone
    assert Path(os.environ["MARKER"]).exists()
    with np.load(data) as archive:
        arrays = dict(archive)
    assert calibrate(arrays, "mean-minmax", cluster) == calibrate(arrays, "mean-minmax", None)


@needs_ray
def test_other_versions_are_refused(cluster, monkeypatch):
    from qgraph.tasks import ray_cluster

    monkeypatch.setattr(ray_cluster, "_versions", lambda: {"qgraph": "9.9"})
    with pytest.raises(Exception, match=r"Ray worker on .*numpy .* for missing.*qgraph .* for 9.9"):
        cluster.run([Task.of("square", taskwork.square, x=2)])


@needs_ray
def test_a_cluster_that_is_not_there_is_named():
    # Without a driver of its own this process would be asked to use the running cluster.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open_executor(ray=f"127.0.0.1:{port}") as absent:
        absent._ray = type("Unconnected", (), {**vars(ray), "is_initialized": staticmethod(bool)})
        with pytest.raises(EngineError, match="Ray at 127.0.0.1:.*: can't be reached .*refused"):
            absent.run([Task.of("square", taskwork.square, x=2)])


def test_ray_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'qgraph\[ray\]'"):
        open_executor(ray="local")


@needs_ray
def test_workers_are_for_local_clusters():
    with pytest.raises(UsageError, match="the cluster at auto decides.*--workers"):
        open_executor(3, "auto")


@needs_ray
def test_a_cluster_builds_what_one_process_builds_though_a_worker_dies(
    cluster, tmp_path, monkeypatch
):
    from models.digits.data import load

    prepared = prepared_vit(load())
    alone, notes = made(prepared, tmp_path / "alone", None)
    marker = str(tmp_path / "died")
    monkeypatch.setattr("qgraph.search.candidates.Task", mortal_task(marker))
    shared, other_notes = made(prepared, tmp_path / "cluster", cluster)
    assert Path(marker).exists() and notes == other_notes
    assert_all_same(alone, shared)
