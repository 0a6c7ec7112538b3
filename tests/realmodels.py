"""Real models and data that lie beside the checkout on some machines, and are in no wheel."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared(kind: str, name: str) -> Path:
    """Path of `models/NAME` or `data/NAME` under $QGRAPH_SHARED or ../shared; skips if absent.

    Models may also lie where the zoo builds them, in $MODELS_ROOT/onnx.
    """
    home = Path(os.environ.get("QGRAPH_SHARED") or ROOT.parent / "shared")
    store = Path(os.environ.get("MODELS_ROOT") or ROOT / ".models")
    places = [home / kind / name, *([store / "onnx" / name] if kind == "models" else [])]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        pytest.skip(f"real file {kind}/{name} is not in {home} (set QGRAPH_SHARED)")
    return found
