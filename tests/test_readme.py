"""Every Python example in README.md and docs/sessions.md runs as it is written there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = "".join((ROOT / name).read_text() for name in ("README.md", "docs/sessions.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_example_runs(code: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "digits", tmp_path / "models" / "digits")
    (tmp_path / "example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout and list(tmp_path.glob("digits*"))
