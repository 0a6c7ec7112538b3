"""Functions that the tests of qgraph.tasks run in other processes."""

import os
import signal
import sys
import time
from pathlib import Path

from qgraph.errors import DataError


def square(x):
    return x * x


def last_first(x, marker):
    """Wait, if x is 0, until another task has ended; leave a trace of having been run."""
    # Opening makes the file, closing writes into it: another process may come in between.
    while x == 0 and not (Path(marker).exists() and Path(marker).stat().st_size):
        time.sleep(0.01)
    with open(marker, "a") as file:
        file.write(f"{x}\n")
    return x, os.getpid()


def die_once(x, marker):
    """Kill the worker the first time."""
    path = Path(marker)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def build_or_die(marker, **arguments):
    """Kill the worker the first time, then build a model of a search."""
    from qgraph.search.building import build_shared

    die_once(None, marker)
    return build_shared(**arguments)


def die():
    os._exit(3)


def fail():
    raise DataError("has a hole", where="sample 3", fix="mend it")


class OddError(Exception):
    """Can't be unpickled: its arguments are not those of its constructor."""

    def __init__(self, first, second):
        super().__init__(first)
        self.second = second


def fail_oddly():
    raise OddError("one", "two")


def unpicklable():
    return lambda: 0


def chat(x):
    print("printed by a task")
    os.write(1, b"written by a task\n")
    sys.stdout.flush()
    return x


def read(folder, name):
    with folder.opened() as path:
        return (path / name).read_bytes()


def sleep(marker, seconds):
    half = Path(marker).with_suffix(".half")
    half.write_text(str(os.getpid()))
    half.replace(marker)
    time.sleep(seconds)


def surroundings():
    from qgraph.runtime.backend import available_cores

    return available_cores(), os.environ.get("OMP_NUM_THREADS"), sys.path


def dying_states(**arguments):
    """Calibrate a shard, but for the first time one behind the first kills its worker."""
    from qgraph.passes.calibrate_shards import shard_states

    if arguments["shard"].first > 0:
        die_once(None, os.environ["MARKER"])
    return shard_states(**arguments)
