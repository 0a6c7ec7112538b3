"""Lets a peer's own mixed-precision tool work on a model; needs numpy and the peer's package, no more.

    PYTHON_OF_ENVIRONMENT run_mixed.py PEER MODEL.onnx FEEDS.npz FOLDER DROP

Files go to FOLDER. The tool may ask what a file scores: a line `{"score": PATH}` goes out on the first
standard output, and the answer, by how much the file is worse than the float model, comes in as a line.
Whatever the tool itself prints goes to standard error. At the end `{"made": {NAME: NOTE}}` goes out.
"""

import importlib
import json
import os
import sys
from pathlib import Path

from run import load


def main() -> int:
    """Run the tool."""
    peer, model, data, folder, drop = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # tools print

    def score(path: str | Path) -> float:
        print(json.dumps({"score": str(path)}), file=out)
        return float(sys.stdin.readline())

    tool = importlib.import_module(f"mixed_{peer}")
    made = tool.mixed(Path(model), load(Path(data)), Path(folder), score, float(drop))
    print(json.dumps({"made": made}), file=out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
