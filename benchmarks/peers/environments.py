"""A virtual environment for each peer: their requirements exclude one another, and qgraph's.

Environments lie in a cache folder and are made once; delete the folder to make them again. pip runs
with the caller's own settings (`PIP_INDEX_URL`, `PIP_CONSTRAINT` and the like).
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.catalogue import Peer

# Written last, so that an interrupted install is not taken for a complete one.
READY = "ready.json"
TIMEOUT_S = 3600


class InstallError(Exception):
    """A peer can't be installed; the text says why, in one line."""


@dataclass(frozen=True)
class Environment:
    """An installed peer.

    Attributes:
        python: Its interpreter.
        versions: Versions of the packages that the peer names, by package.
        megabytes: Size on disk.
    """

    python: Path
    versions: dict[str, str]
    megabytes: float


def environment(peer: Peer, cache: Path) -> Environment:
    """Return the peer's environment, made now if it is not in the cache.

    Args:
        peer: What to install.
        cache: Folder of all environments.

    Raises:
        InstallError: pip or venv failed; the end of its output is in the text.
    """
    folder = cache / f"{peer.name}-py{sys.version_info.major}.{sys.version_info.minor}"
    python, ready = folder / "bin" / "python", folder / READY
    wanted = list(peer.requirements)
    if not ready.is_file() or json.loads(ready.read_text())["requirements"] != wanted:
        print(f"installing {' '.join(wanted)} into {folder}", file=sys.stderr, flush=True)
        _call([sys.executable, "-m", "venv", "--clear", str(folder)])
        _call([str(python), "-m", "pip", "install", "--quiet", *wanted])
        ready.write_text(json.dumps({"requirements": wanted}))
    return Environment(python, _versions(python, peer.packages), _megabytes(folder))


def _call(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise InstallError(f"{' '.join(command[:4])} took more than {TIMEOUT_S} s") from None
    if done.returncode:
        raise InstallError(last_line(done.stderr or done.stdout))
    return done.stdout


def last_line(text: str) -> str:
    """The last line of a tool's output that says something, cut to a table's width."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def _versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json, sys; "
        "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    )
    found: dict[str, str] = json.loads(_call([str(python), "-c", code, *packages]))
    return found


def _megabytes(folder: Path) -> float:
    # Links are not followed: a venv links to the interpreter that made it.
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6
