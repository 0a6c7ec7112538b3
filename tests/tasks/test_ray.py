"""Tasks on a real cluster of several processes, started here."""

import os
from pathlib import Path

import pytest
import taskwork

from qgraph.errors import DataError, EngineError, UsageError
from qgraph.tasks import Task, open_executor

try:
    import ray
except ImportError:
    ray = None
needs_ray = pytest.mark.skipif(ray is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # A token of this cluster alone, not the user's.
        token = tmp_path_factory.mktemp("ray") / "token"
        token.write_text("0" * 64)
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
    assert cluster.workers == 2


@needs_ray
def test_a_worker_killed_in_the_middle_is_replaced(cluster, tmp_path):
    marker = str(tmp_path / "died")
    tasks = [Task.of(str(i), taskwork.square, x=i) for i in range(4)]
    tasks.insert(1, Task.of("mortal", taskwork.die_once, x="once", marker=marker))
    assert cluster.run(tasks) == [0, "once", 1, 4, 9]
    assert Path(marker).exists()


@needs_ray
def test_a_task_that_workers_keep_dying_over_is_named(cluster):
    with pytest.raises(EngineError, match="shard 7: WorkerCrashedError after 3 attempts"):
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


@needs_ray
def test_other_versions_are_refused(cluster, monkeypatch):
    from qgraph.tasks import ray_cluster

    monkeypatch.setattr(ray_cluster, "_versions", lambda: {"qgraph": "9.9"})
    with pytest.raises(Exception, match=r"Ray worker on .*numpy .* for missing.*qgraph .* for 9.9"):
        cluster.run([Task.of("square", taskwork.square, x=2)])


@needs_ray
def test_a_cluster_that_is_not_there_is_named():
    # Without a driver of its own this process would be asked to use the running cluster.
    with open_executor(ray="ray://127.0.0.1:1") as absent:
        absent._ray = type("Unconnected", (), {**vars(ray), "is_initialized": staticmethod(bool)})
        with pytest.raises(EngineError, match="Ray at ray://127.0.0.1:1: can't be reached"):
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
