import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import taskwork

from qgraph.errors import DataError, EngineError, UsageError
from qgraph.tasks import InProcess, Task, open_executor
from qgraph.tasks.processes import Processes


def squares(count):
    return [Task.of(f"square {i}", taskwork.square, x=i) for i in range(count)]


@pytest.fixture(scope="module")
def two():
    with Processes(2) as workers:
        yield workers


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_results_stand_in_the_order_of_the_tasks(two, tmp_path):
    marker = tmp_path / "order"
    tasks = [Task.of(str(i), taskwork.last_first, x=i, marker=str(marker)) for i in range(12)]
    told = []
    found = two.run(tasks, lambda done, total: told.append((done, total)))
    assert [x for x, _ in found] == list(range(12))
    assert told == [(i + 1, 12) for i in range(12)]
    ended = marker.read_text().split()
    assert ended[0] != "0" and sorted(ended, key=int) == [str(i) for i in range(12)]
    assert len({pid for _, pid in found}) == 2 and os.getpid() not in {pid for _, pid in found}


def test_in_process_and_processes_agree(two):
    assert InProcess().run(squares(7)) == two.run(squares(7)) == [i * i for i in range(7)]


def test_tasks_are_taken_as_workers_become_free(two):
    taken = []

    def endless():
        for task in iter(lambda: squares(1)[0], None):
            taken.append(task)
            yield task

    stream = two.stream(endless())
    assert [next(stream) for _ in range(3)] == [0, 0, 0]
    assert len(taken) < 20
    stream.close()
    assert two.run(squares(3)) == [0, 1, 4], "the workers start again"


def test_a_task_whose_worker_dies_is_tried_again_and_counts_once(two, tmp_path):
    marker = str(tmp_path / "died")
    tasks = squares(5)
    tasks.insert(2, Task.of("mortal", taskwork.die_once, x="once", marker=marker))
    assert two.run(tasks) == [0, 1, "once", 4, 9, 16]
    assert Path(marker).exists()


def test_a_task_that_workers_keep_dying_over_is_named(two):
    tasks = [*squares(3), Task.of("shard 7", taskwork.die)]
    with pytest.raises(EngineError, match="shard 7: 3 worker processes died.*exit status 3"):
        two.run(tasks)
    assert two.run(squares(3)) == [0, 1, 4]


def test_what_a_task_raises_arrives_whole(two):
    with pytest.raises(DataError) as caught:
        two.run([*squares(3), Task.of("shard 1", taskwork.fail)])
    assert str(caught.value) == "sample 3: has a hole; mend it"
    assert (caught.value.where, caught.value.fix) == ("sample 3", "mend it")
    assert "taskwork.py" in caught.value.__notes__[0]
    with pytest.raises(EngineError, match=r"shard 2: raised OddError \(one\)"):
        two.run([Task.of("shard 2", taskwork.fail_oddly)])
    with pytest.raises(Exception, match="(?i)pickle"):
        two.run([Task.of("shard 3", taskwork.unpicklable)])
    assert two.run(squares(2)) == [0, 1]


def test_what_tasks_print_goes_to_stderr(capfd):
    with Processes(2) as workers:
        assert workers.run([Task.of("talk", taskwork.chat, x=i) for i in range(3)]) == [0, 1, 2]
    printed = capfd.readouterr()
    assert printed.out == "" and "printed by a task" in printed.err
    assert "written by a task" in printed.err


def test_workers_share_the_cores_and_find_what_this_process_finds(monkeypatch):
    monkeypatch.setenv("QGRAPH_CORES", "2")
    with Processes(2) as workers:
        cores, threads, path = workers.run([Task.of("look", taskwork.surroundings)])[0]
    assert (cores, threads) == (1, "1") and path == sys.path


def test_a_shared_folder(two, tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"abc")
    folder = two.share(tmp_path)
    tasks = [Task.of("read", taskwork.read, folder=folder, name="weights.bin")] * 3
    assert two.run(tasks) == [b"abc"] * 3


def test_closing_ends_workers_that_are_at_work(tmp_path):
    marker = tmp_path / "pid"
    tasks = [Task.of("sleep", taskwork.sleep, marker=str(marker), seconds=s) for s in (0, 600)]
    with Processes(1) as workers:
        stream = workers.stream(tasks)
        next(stream)
        pid = int(marker.read_text())
        assert alive(pid)
    assert not alive(pid)


def test_an_error_is_raised_before_tasks_in_front_of_it_end(two, tmp_path):
    marker = str(tmp_path / "pid")
    tasks = [Task.of("sleep", taskwork.sleep, marker=marker, seconds=600)]
    with pytest.raises(DataError, match="has a hole"):
        two.run([*tasks, Task.of("shard 1", taskwork.fail)])


SCRIPT = """
import signal, sys
# What a shell starts with & ignores Ctrl-C, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
import taskwork
from qgraph.tasks import Task
from qgraph.tasks.processes import Processes
with Processes(1) as workers:
    workers.run([Task.of("sleep", taskwork.sleep, marker={marker!r}, seconds=600)])
"""


def test_ctrl_c_ends_everything_also_without_a_guarded_script(tmp_path):
    marker = tmp_path / "pid"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent.parent), marker=str(marker)))
    process = subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not marker.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in err
    assert not alive(int(marker.read_text()))


def test_functions_that_no_other_process_can_import_are_refused():
    with pytest.raises(ValueError, match="can't be imported"):
        Task.of("inner", lambda: 0)


def test_who_runs_tasks():
    assert isinstance(open_executor(), InProcess) and isinstance(open_executor(1), InProcess)
    assert open_executor(3).workers == 3
    with pytest.raises(UsageError, match="0 workers"):
        open_executor(0)
