"""Static int8 quantization by other packages and by qgraph: same model, same data, one scorer.

    python -m benchmarks.peers MODEL.onnx --calibrate CALIBRATION.npz --score EVALUATION.npz
    python -m benchmarks.peers --task mobilenet_v2 [--peers onnxruntime,nncf:mixed] [--cache DIR]

Each .npz holds one array for each input, samples along the first axis; `labels` in the second adds
top-1. `--task` takes a model with its data and its own score from benchmarks/accuracy.py instead.
Every peer is installed from the package index into an environment of its own, which stays in the
cache (several gigabytes in all), and quantizes in a process of its own: see recipes/. `--peers`
takes names, or `name:recipe` for one recipe, also for those that run only when named; `--qgraph`
the rows of qgraph likewise. The files are scored and timed by onnxruntime's CPU provider: SQNR in
dB of the last output, all samples together; latency against the float model's, in turn, one sample
at a time. One process at a time.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import accuracy
from benchmarks.peers import scoring, table
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.environments import Environment, InstallError, environment, last_line
from benchmarks.peers.recipes.run import save
from benchmarks.peers.table import Row
from qgraph.data.inputs import Sample
from qgraph.metrics import metric
from qgraph.onnx_io import peek

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = Path(__file__).resolve().parent / "recipes" / "run.py"
QGRAPH = (
    "fast",
    "default",
    "best",
    "calibrate mean-minmax",
    "calibrate percentile",
    "calibrate entropy",
    "calibrate mse",
    "calibrate auto",
)


def main() -> int:
    """Run every row one after the other and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--calibrate", type=Path)
    parser.add_argument("--score", type=Path)
    parser.add_argument("--task", default="digits_cnn", help="where no MODEL is given")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--qgraph", default=",".join(QGRAPH))
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    parser.add_argument("--cache", type=Path, default=Path(cache) / "qgraph-bench")
    parser.add_argument("--timeout", type=float, default=900, help="seconds a row may take")
    parser.add_argument("--json", type=Path, help="append every row to this file")
    args = parser.parse_args()
    if args.model and not (args.calibrate and args.score):
        parser.error("a MODEL needs --calibrate and --score")
    task = from_files(args) if args.model else next(iter(accuracy.tasks([args.task])), None)
    if task is None:
        return 1
    reference = scoring.Reference(task)
    print(f"{task.name}: {len(task.calibration)} samples; float32 {reference.score}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="qgraph-peers-") as scratch:
        feeds = Path(scratch) / "feeds.npz"
        save(task.calibration, feeds)
        for peer, recipes in chosen(args.peers, args.qgraph):
            try:
                python, title = installed(peer, args.cache)
            except InstallError as error:
                print(f"{peer.name}: not installed: {error}", file=sys.stderr, flush=True)
                continue
            for recipe in recipes:
                row = measure(python, title, peer, recipe, feeds, reference, args.timeout)
                print(table.line(row), flush=True)
                if args.json:
                    with args.json.open("a") as file:
                        file.write(json.dumps({"task": task.name, **row.as_json()}) + "\n")
                rows.append(row)
    print("\n" + table.markdown(rows, reference.score))
    print("\n".join(table.ahead(rows)))
    return 0


def chosen(peers: str, ours: str) -> list[tuple[Peer, tuple[str, ...]]]:
    """Peers and their recipes in the order of the text; qgraph's last.

    Raises:
        SystemExit: A name is unknown.
    """
    found: list[tuple[Peer, tuple[str, ...]]] = []
    for word in peers.split(",") if peers else []:
        name, _, recipe = word.partition(":")
        peer = PEERS.get(name)
        if peer is None:
            raise SystemExit(f"no peer {name}; there are: {', '.join(PEERS)}")
        if recipe and recipe not in peer.recipes + peer.named:
            raise SystemExit(f"{name} has: {', '.join(peer.recipes + peer.named)}")
        found.append((peer, (recipe,) if recipe else peer.recipes))
    rows = tuple(name for name in ours.split(",") if name)
    return [*found, (Peer("qgraph", (), (), rows), rows)]


def installed(peer: Peer, cache: Path) -> tuple[Path, str]:
    """Interpreter, and name with version, of a peer or of qgraph."""
    if peer.name == "qgraph":
        return Path(sys.executable), "qgraph"
    made: Environment = environment(peer, cache)
    title = " ".join(f"{name} {version}" for name, version in made.versions.items())
    print(f"{title}: {made.megabytes:.0f} MB installed", file=sys.stderr, flush=True)
    return made.python, title


def measure(
    python: Path,
    title: str,
    peer: Peer,
    recipe: str,
    feeds: Path,
    reference: scoring.Reference,
    timeout: float,
) -> Row:
    """Quantize in a process of its own, then score here; what fails becomes the row's note."""
    with tempfile.TemporaryDirectory(dir=feeds.parent) as folder:
        output = Path(folder) / "quantized.onnx"
        model = copied(reference.task.model, Path(folder) / "original")
        command = [str(python), str(RUN), peer.name, recipe, str(model), str(feeds), str(output)]
        env = dict(os.environ)
        if peer.name == "qgraph":
            env["PYTHONPATH"] = str(ROOT)
        try:
            done = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                cwd=folder,
                env=env,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            return Row(title, recipe, note=f"stopped after {timeout:.0f} s")
        if done.returncode:
            return Row(title, recipe, note=last_line(done.stderr or done.stdout))
        took = json.loads(done.stdout.splitlines()[-1])
        notes = (took["note"], f"made for {peer.aimed}" if peer.aimed else "")
        took["note"] = "; ".join(note for note in notes if note)
        return reference.complete(Row(title, recipe, **took), output)


def copied(model: Path, folder: Path) -> Path:
    """A copy for one recipe: ModelOpt and others write inferred shapes into the file they read."""
    folder.mkdir()
    # External data lies beside the model under a name that begins with its own.
    for file in model.resolve().parent.glob(f"{model.resolve().name}*"):
        shutil.copyfile(file, folder / file.name)
    return folder / model.resolve().name


def from_files(args: argparse.Namespace) -> accuracy.Task:
    """A task of the user's own files."""
    with np.load(args.calibrate) as arrays:
        calibration = samples(dict(arrays))
    with np.load(args.score) as arrays:
        inputs = dict(arrays)
    labels = inputs.pop("labels", None)
    if labels is None:
        evaluation = [Sample(feeds, {}) for feeds in samples(inputs)]
        return accuracy.Task(args.model.name, args.model, calibration, evaluation, None)
    top1 = metric("top1", output=peek(args.model).outputs[-1].name)
    evaluation = accuracy.labelled(inputs, labels, 1)
    return accuracy.Task(args.model.name, args.model, calibration, evaluation, top1)


def samples(inputs: accuracy.Feeds) -> list[accuracy.Feeds]:
    """Split arrays with samples along the first axis."""
    count = min(len(array) for array in inputs.values())
    return [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(count)]


if __name__ == "__main__":
    sys.exit(main())
