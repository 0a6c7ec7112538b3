"""Tasks in worker processes of this machine."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock
from typing import Any

from qgraph.errors import EngineError
from qgraph.runtime.backend import CORES, available_cores
from qgraph.tasks.task import AHEAD, RETRIES, Executor, Progress, Task, in_order, silent
from qgraph.tasks.worker import receive, send

# Its own start instead of multiprocessing's, which runs the caller's script again: a script then
# needs a guard around what it does, and a `python -` has no file to run.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from qgraph.tasks.worker import serve; serve()"
)
# What sets the threads of numpy's BLAS; read when it is loaded.
_THREADS = (CORES, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Workers clean up when they are terminated; one inside a long call of the engine is killed.
GRACE_S = 5.0


class Processes(Executor):
    """A number of worker processes, each with its share of the cores.

    A thread for each of them waits for its answers, so it is known which task a worker died over.
    """

    def __init__(self, workers: int, retries: int = RETRIES) -> None:
        """Prepare; processes start with the first tasks.

        Args:
            workers: How many, at least 1.
            retries: How often a task is tried again after its worker died.
        """
        self.workers, self._retries = workers, retries
        self._ahead, self.beside = AHEAD * workers, workers
        cores = max(1, available_cores() // workers)
        self._all = [_Worker(cores) for _ in range(workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)

    def stream(self, tasks: Iterable[Task], progress: Progress = silent) -> Iterator[Any]:
        """Give the tasks' results in the order of the tasks."""
        pool = ThreadPoolExecutor(self.workers)
        for worker in self._all:
            worker.allow()
        finished = False
        try:
            yield from in_order(
                tasks, lambda task: pool.submit(self._call, task), self._ahead, progress
            )
            finished = True
        finally:
            if not finished:  # an error, Ctrl-C, or nobody wants the rest
                self.close()
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """End the worker processes, also those at work."""
        for worker in self._all:
            worker.terminate()
        for worker in self._all:
            worker.end()

    def _call(self, task: Task) -> Any:
        request = pickle.dumps(task, pickle.HIGHEST_PROTOCOL)
        worker = self._idle.get()
        try:
            for _ in range(self._retries + 1):
                answer = worker.ask(request)
                if answer is not None:
                    break
            else:
                raise EngineError(
                    f"{self._retries + 1} worker processes died over it, the last {worker.ending}",
                    where=task.key,
                    fix="if memory ran out, use fewer --workers",
                )
        finally:
            self._idle.put(worker)
        error, result = pickle.loads(answer)
        if error is not None:
            raise error
        return result


class _Worker:
    """One worker process, started when it is asked something.

    Attributes:
        ending: How the last process ended.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._process: subprocess.Popen[bytes] | None = None
        self._starting, self._asking = Lock(), Lock()
        self._allowed = True
        self.ending = ""

    def allow(self) -> None:
        """Let processes start again after `terminate`."""
        self._allowed = True

    def ask(self, request: bytes) -> bytes | None:
        """Send a request and wait for the answer; None if the process died over it."""
        with self._asking:
            process = self._started()
            assert process.stdin is not None and process.stdout is not None
            try:
                send(process.stdin, request)
                answer = receive(process.stdout)
            except OSError:
                answer = None
            if answer is None:
                self._reap()
            return answer

    def terminate(self) -> None:
        """Ask the process to end and start no other; returns at once."""
        with self._starting:
            self._allowed = False
            if self._process is not None:
                self._process.terminate()

    def end(self) -> None:
        """Wait for the end of a process that was terminated; kill it if that takes long."""
        with self._starting:
            process = self._process
        if process is not None:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        with self._asking:
            self._reap()

    def _started(self) -> "subprocess.Popen[bytes]":
        with self._starting:
            if not self._allowed:
                raise EngineError("the workers were stopped")
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START, json.dumps(sys.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, **dict.fromkeys(_THREADS, str(self._cores))},
                )
            return self._process

    def _reap(self) -> None:
        process = self._process
        if process is None:
            return
        with suppress(OSError):  # Popen flushes what the dead process did not read
            process.__exit__(None, None, None)
        status = process.returncode
        self.ending = f"with exit status {status}" if status >= 0 else f"by {_signal(-status)}"
        self._process = None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
