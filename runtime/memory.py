"""Peak memory of one model in one engine, measured in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from qgraph.errors import EngineError
from qgraph.runtime.backend import Backend, EngineOptions
from qgraph.runtime.tensors import EXTENSION_DTYPES, Array, numpy_dtype, type_name


@dataclass(frozen=True)
class PeakMemory:
    """Peak resident memory of a process that opened a model and ran it.

    Attributes:
        peak_bytes: Of the whole process: interpreter, engine, shared libraries, model, runs.
        baseline_bytes: Before the model was opened, with the engine imported and feeds read.
        device_bytes: What opening and running it took on the engine's device, if it has one; other
            processes there disturb it.
    """

    peak_bytes: int
    baseline_bytes: int
    device_bytes: int | None = None

    @property
    def model_bytes(self) -> int:
        """What opening and running the model added."""
        return self.peak_bytes - self.baseline_bytes


def peak_memory(
    model: Path,
    backend: Backend,
    feeds: Mapping[str, Array],
    options: EngineOptions | None = None,
    *,
    runs: int = 3,
    timeout_s: float = 600.0,
) -> PeakMemory:
    """Open and run a model in a child process and read that process's peak memory.

    Args:
        model: Path of the model.
        backend: A registered engine.
        feeds: Arrays by input name.
        options: The engine's options.
        runs: Runs; the second often needs more than the first.
        timeout_s: Time after which the child is stopped.

    Raises:
        EngineError: The child fails, with the last line that it wrote, or takes too long.
    """
    with TemporaryDirectory(prefix="qgraph-measure-") as folder:
        job = {
            "model": str(model.resolve()),
            "backend": backend.name,
            "options": asdict(options or EngineOptions()),
            "dtypes": _save(feeds, Path(folder) / "feeds.npz"),
            "runs": runs,
        }
        (Path(folder) / "job.json").write_text(json.dumps(job))
        # -P: a stray json.py in the working folder must not be imported.
        command = [sys.executable, "-P", "-m", "qgraph.runtime.measure", folder]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EngineError(
                f"no result after {timeout_s:g} s", where=str(model), fix="allow more time"
            ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise EngineError(f"the measuring process failed: {lines[-1]}", where=str(model))
    return PeakMemory(**json.loads(done.stdout.splitlines()[-1]))


def load_feeds(path: Path, dtypes: Mapping[str, str]) -> dict[str, Array]:
    """Read what `peak_memory` saved; feeds are numbered, as an input name may be no file name."""
    with np.load(path, allow_pickle=False) as archive:
        return {
            name: _restore(archive[str(index)], dtype)
            for index, (name, dtype) in enumerate(dtypes.items())
        }


def _save(feeds: Mapping[str, Array], path: Path) -> dict[str, str]:
    """Save feeds without pickling; return their types by name, in the order of the file."""
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    dtypes = {name: type_name(array.dtype) for name, array in arrays.items()}
    plain = {str(i): _plain(a, dtypes[n]) for i, (n, a) in enumerate(arrays.items())}
    np.savez(path, allow_pickle=False, **plain)
    return dtypes


def _plain(array: Array, dtype: str) -> Array:
    if dtype == "string":
        return array.astype(np.str_)
    if dtype in EXTENSION_DTYPES:
        return np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape, -1)
    return array


def _restore(array: Array, dtype: str) -> Array:
    if dtype == "string":
        return array.astype(object)
    if dtype in EXTENSION_DTYPES:
        return array.view(numpy_dtype(dtype)).reshape(array.shape[:-1])
    return array
