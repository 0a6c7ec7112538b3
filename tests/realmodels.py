"""Real models and data that lie beside the checkout on some machines, and are in no wheel."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared(kind: str, name: str) -> Path:
    """Path of `models/NAME` or `data/NAME` under $QGRAPH_SHARED or ../shared; skips if absent."""
    home = Path(os.environ.get("QGRAPH_SHARED") or ROOT.parent / "shared")
    path = home / kind / name
    if not path.is_file():
        pytest.skip(f"real file {kind}/{name} is not in {home} (set QGRAPH_SHARED)")
    return path
