"""benchmarks/contrib.py on tiny models: every form is right, and the rows are written."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_case_is_checked_and_timed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.contrib", "--small", "--output", tmp_path / "rows.json"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"decoder", "decoder without cache", "encoder"}
    assert all(row["contributed_us"] > 0 for row in rows)
    assert max(row["contributed_error"] for row in rows) < 1e-5
