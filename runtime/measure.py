"""Child process of `qgraph.runtime.memory.peak_memory`: `python -m qgraph.runtime.measure DIR`.

DIR holds job.json and feeds.npz; the result goes to stdout as one line of JSON.
"""

import json
import sys
from pathlib import Path

from qgraph.errors import QGraphError
from qgraph.runtime import backend
from qgraph.runtime.backend import Backend, EngineOptions, WithMemory
from qgraph.runtime.memory import load_feeds


def peak_bytes() -> int:
    """Peak resident memory of this process in bytes.

    On Linux VmHWM: ru_maxrss survives exec, so a child would report its parent's peak.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _device_bytes(engine: Backend) -> int | None:
    return engine.device_memory() if isinstance(engine, WithMemory) else None


def main(folder: Path) -> int:
    """Run the job in `folder`; return the exit status."""
    job = json.loads((folder / "job.json").read_text())
    feeds = load_feeds(folder / "feeds.npz", job["dtypes"])
    try:
        engine = backend(job["backend"])
        if reason := engine.unavailable():
            print(reason, file=sys.stderr)
            return 1
        baseline, before = peak_bytes(), _device_bytes(engine)
        with engine.open(Path(job["model"]), EngineOptions(**job["options"])) as session:
            session.warmup(feeds, job["runs"])
            found = {"peak_bytes": peak_bytes(), "baseline_bytes": baseline}
            after = _device_bytes(engine)
            if before is not None and after is not None:
                found["device_bytes"] = after - before
            print(json.dumps(found))
    except QGraphError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
