"""Tasks on a Ray cluster."""

import os
import platform
import re
import socket
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from qgraph.errors import EngineError, QGraphError, UsageError
from qgraph.runtime.backend import CORES, available_cores
from qgraph.tasks.opening import LOCAL
from qgraph.tasks.task import (
    AHEAD,
    RETRIES,
    Executor,
    Progress,
    SharedFolder,
    Task,
    in_order,
    silent,
)
from qgraph.tasks.worker import portable
from qgraph.text import one_line

# How long a cluster may take to take a connection.
KNOCK_S = 10.0
# Packages that decide what a model computes: another version gives other results.
_SAME = ("numpy", "onnxruntime", "onnxruntime-gpu")


def load_ray() -> ModuleType:
    """Import Ray.

    Raises:
        UsageError: It is not installed.
    """
    # What a cluster writes about usage is nothing for qgraph's users.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            f"--ray needs Ray ({error})", fix="run `pip install 'qgraph[ray]'`"
        ) from error
    module: ModuleType = ray
    return module


class RayCluster(Executor):
    """The processors of a Ray cluster, one for each task.

    A driver that is connected already (a script that called `ray.init`) stays connected.
    """

    def __init__(self, address: str, workers: int | None = None, retries: int = RETRIES) -> None:
        """Prepare; the connection is made with the first tasks.

        Args:
            address: As `ray.init` takes it; `local` starts a cluster on this machine.
            workers: Processors of a local cluster; default: those available.
            retries: How often a task is tried again after its worker died.

        Raises:
            UsageError: Ray is not installed.
        """
        self._ray = load_ray()
        self._address, self._given, self._retries = address, workers, retries
        self._connected = False
        self.processors: set[str] = set()
        self.workers = workers or available_cores()
        self.beside = self.workers if address == LOCAL else 1

    def stream(self, tasks: Iterable[Task], progress: Progress = silent) -> Iterator[Any]:
        """Give the tasks' results in the order of the tasks."""
        self._connect()
        options = {"num_cpus": 1, "max_retries": self._retries}
        remote = self._ray.remote(**options)(_call)
        running: dict[Future[Any], Any] = {}

        def submit(task: Task) -> Future[Any]:
            reference = remote.remote(task, _versions())
            future: Future[Any] = Future()
            running[future] = reference
            reference.future().add_done_callback(partial(self._settle, future, task))
            future.add_done_callback(running.pop)
            return future

        try:
            yield from in_order(tasks, submit, AHEAD * self.workers, progress)
        finally:
            for reference in list(running.values()):
                with suppress(Exception):  # the cluster may be what failed
                    self._ray.cancel(reference, force=True)

    def share(self, folder: Path) -> SharedFolder:
        """Put the folder's files into the cluster's object store."""
        self._connect()
        files = {each.name: each.read_bytes() for each in sorted(folder.iterdir())}
        return StoredFolder(self._ray.put(files))

    def close(self) -> None:
        """Disconnect, and end a cluster that was started here."""
        if self._connected:
            self._connected = False
            self._ray.shutdown()

    def _connect(self) -> None:
        ray = self._ray
        if not ray.is_initialized():
            local = {"num_cpus": self.workers} if self._address == LOCAL else {}
            options = {"include_dashboard": False} if local else {}
            try:
                _knock(self._address)
                ray.init(
                    self._address,
                    log_to_driver=False,
                    logging_level="ERROR",
                    **local,
                    **options,
                )
            except Exception as error:  # of many classes
                raise EngineError(
                    f"can't be reached ({one_line(str(error))[:200]})",
                    where=f"Ray at {self._address}",
                    fix="check the address and `ray status` there",
                ) from error
            self._connected = True
        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def _settle(self, future: Future[Any], task: Task, answered: Future[Any]) -> None:
        """Turn what Ray says of a task into its result or one line."""
        try:
            error, result, processor = answered.result()
            self.processors.add(processor)
        except Exception as failure:  # noqa: BLE001 - the worker died, or Ray itself failed
            first = (str(failure).strip().splitlines() or [""])[0]
            error = EngineError(
                f"{type(failure).__name__} after {self._retries + 1} attempts ({first[:200]})",
                where=task.key,
                fix="see Ray's logs; if memory ran out, give tasks machines with more",
            )
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


@dataclass(frozen=True)
class StoredFolder:
    """Files in the cluster's object store.

    Attributes:
        reference: To their contents by name.
    """

    reference: Any

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Write the files where the task runs."""
        with tempfile.TemporaryDirectory(prefix="qgraph-") as folder:
            for name, content in load_ray().get(self.reference).items():
                (Path(folder) / name).write_bytes(content)
            yield Path(folder)


def _knock(address: str) -> None:
    """Try to reach the port of an address that names one: Ray itself tries for minutes.

    Raises:
        OSError: Nobody answers.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), KNOCK_S).close()


def _call(task: Task, versions: dict[str, str]) -> tuple[Exception | None, Any, str]:
    """Run a task on a worker of the cluster; what it raises is a result, too: no retry helps.

    Returns:
        The error, or None; the result; the worker's processor.
    """
    os.environ[CORES] = "1"
    try:
        _check(versions)
        return None, task.call(), _processor()
    except Exception as error:  # noqa: BLE001 - raised again where the task came from
        return portable(error, task.key), None, _processor()


def _check(versions: dict[str, str]) -> None:
    """Refuse to compute with other versions than those that the results will be compared to."""
    here = _versions()
    others = [
        f"{name} {here.get(name, 'missing')} for {versions.get(name, 'missing')}"
        for name in sorted(here | versions)
        if here.get(name) != versions.get(name)
    ]
    if others:
        raise QGraphError(
            f"has {', '.join(others)}",
            where=f"Ray worker on {platform.node()}",
            fix="install the same versions everywhere",
        )


@cache
def _versions() -> dict[str, str]:
    from qgraph import __version__

    found = {"qgraph": __version__}
    for name in _SAME:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def _processor() -> str:
    with suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
