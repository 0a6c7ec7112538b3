"""Models by the mixed-precision tools of other packages, to stand beside a promise.

    python -m benchmarks.peers.mixed OUTPUT [--models digits_cnn,mobilenet_v2] [--peers onnxruntime]
    python -m benchmarks.promise --beside OUTPUT

Each tool gets the half of a search's data to calibrate with, and may ask by how much a file is worse than
the float model on the other half; what `benchmarks.promise` keeps aside it never sees. OUTPUT/MODEL has the
files, and notes.json what the tools did, how long that took, and the drop on the second half.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.peers.__main__ import copied
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.environments import InstallError, environment
from benchmarks.peers.recipes.run import save
from benchmarks.promise.__main__ import MODELS
from benchmarks.promise.data import Work, works
from benchmarks.promise.measure import DROPS
from qgraph.errors import QGraphError
from qgraph.metrics.metric import Contributions
from qgraph.metrics.scoring import run_sides
from qgraph.runtime import backend

# Calibration samples, and samples that a tool's files are scored on.
CALIBRATED, SCORED = 100, 300
NEURAL_COMPRESSOR = Peer(
    "neural_compressor",
    (
        "neural-compressor==2.6",
        "onnx<1.17",
        "onnxruntime<1.20",
        "numpy<2",
        "setuptools<81",
        "six",
        "onnxruntime-extensions",
    ),
    ("neural-compressor", "onnxruntime"),
    (),
)
TOOLS = {"onnxruntime": PEERS["onnxruntime"], "modelopt": PEERS["modelopt"]}
TOOLS |= {NEURAL_COMPRESSOR.name: NEURAL_COMPRESSOR, "nncf": PEERS["nncf"]}
RECIPES = Path(__file__).resolve().with_name("recipes")
# The operators that hold nearly all multiplications.
PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM"))
INTEGER_PRODUCTS = frozenset(("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"))


class Scorer:
    """Says by how much a file is worse than the float model, in the metric's own unit."""

    def __init__(self, work: Work) -> None:
        """Run the float model on what files are scored on."""
        self.work, self.rows = work, work.search[1::2][:SCORED]
        self.exact = work.metric.score(self._contributions(work.model))

    def drop(self, file: Path) -> float:
        """Return the drop; infinite for a file that does not run."""
        try:
            found = self.work.metric.score(self._contributions(file))
        except QGraphError:
            return math.inf
        sign = 1 if self.work.metric.better == "higher" else -1
        return float(sign * (self.exact - found))

    def _contributions(self, file: Path) -> Contributions:
        metric = self.work.metric
        with backend("onnxruntime-cpu").open(file) as session:
            rows = [metric.contributions(run_sides(session, metric.sides, r), r) for r in self.rows]
        return np.concatenate(rows)


def run_tool(
    peer: Peer, work: Work, scorer: Scorer, folder: Path, drop: float, cache: Path, timeout: int
) -> dict[str, Any]:
    """Let one tool work on one model; return what the notes say of it."""
    try:
        installed = environment(peer, cache)
    except InstallError as error:
        return {"fails": f"can't be installed: {error}"}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        feeds = Path(scratch) / "feeds.npz"
        save(work.feeds[::2][:CALIBRATED], feeds)
        # Tools write inferred shapes into the file that they read.
        model = copied(work.model, Path(scratch) / "original")
        command = [str(installed.python), str(RECIPES / "run_mixed.py"), peer.name, str(model)]
        command = [*command, str(feeds), str(folder.resolve()), str(drop)]
        log = folder / f"{peer.name}.log"
        with log.open("w") as errors, subprocess.Popen(
            ["timeout", str(timeout), *command],
            cwd=scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as process:  # fmt: skip
            assert process.stdin is not None and process.stdout is not None
            made: dict[str, str] | None = None
            for line in process.stdout:
                said = json.loads(line)
                if "score" in said:
                    print(scorer.drop(Path(said["score"])), file=process.stdin, flush=True)
                made = said.get("made", made)
    found: dict[str, Any] = {"versions": installed.versions, "seconds": time.perf_counter() - start}
    if made is None:
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
        ended = "took too long" if process.returncode == 124 else last[0][:300]
        return {
            **found,
            "fails": ended,
            "left": sorted(f.name for f in folder.glob(f"{peer.name.replace('_', '-')}*.onnx")),
        }
    found["made"] = {
        name: {"note": note, **_scored(folder / f"{name}.onnx", scorer)}
        for name, note in made.items()
    }
    return found


def _scored(file: Path, scorer: Scorer) -> dict[str, Any]:
    if not file.exists():
        return {}
    drop = scorer.drop(file)
    found = {"drop": drop} if math.isfinite(drop) else {"fails": "does not run"}
    return {**found, "bytes": file.stat().st_size, **products(file)}


def products(file: Path) -> dict[str, int]:
    """Count the products that stay in floating point, and all products.

    One is in integers where both its inputs come out of DequantizeLinear, or where its operator takes
    integers.
    """
    graph = onnx.load(str(file), load_external_data=False).graph
    makers = {out: node.op_type for node in graph.node for out in node.output}
    found = [node for node in graph.node if node.op_type in PRODUCTS]
    plain = [
        node
        for node in found
        if any(makers.get(name) != "DequantizeLinear" for name in node.input[:2])
    ]
    integers = [node for node in graph.node if node.op_type in INTEGER_PRODUCTS]
    return {"float_products": len(plain), "products": len(found) + len(integers)}


def main() -> int:
    """Run all tools on all models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--peers", default=",".join(TOOLS))
    parser.add_argument("--drop", default="0.5%")
    parser.add_argument("--lines", type=int, default=0, help="text lines, as in benchmarks.promise")
    parser.add_argument("--images", type=Path, help="photographs, as in benchmarks.promise")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "qgraph-bench")
    parser.add_argument("--timeout", type=int, default=480, help="seconds for a tool on a model")
    args = parser.parse_args()
    for work in works(args.models.split(","), args.lines, args.images):
        folder = args.output / work.name
        folder.mkdir(parents=True, exist_ok=True)
        scorer = Scorer(work)
        asked = DROPS.get(work.metric.name, {}).get(args.drop, args.drop)
        allowed = float(asked.removesuffix("%")) / (100 if asked.endswith("%") else 1)
        notes_file = folder / "notes.json"
        notes = json.loads(notes_file.read_text()) if notes_file.exists() else {}
        notes["float"] = scorer.exact
        for name in args.peers.split(","):
            notes[name] = run_tool(
                TOOLS[name], work, scorer, folder, allowed, args.cache, args.timeout
            )
            print(work.name, name, json.dumps(notes[name]), flush=True)
            notes_file.write_text(json.dumps(notes, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
