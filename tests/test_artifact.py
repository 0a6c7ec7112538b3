import json
import os
from pathlib import Path

import pytest

from qgraph.artifact import Artifact, check_output, draft
from qgraph.errors import ArtifactError


def old_artifact(path: Path) -> Path:
    path.mkdir()
    (path / "manifest.json").write_text("{}")
    (path / "model.onnx").write_text("old")
    return path


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_nothing_is_seen_until_it_is_complete(tmp_path: Path) -> None:
    with draft(tmp_path / "out") as scratch:
        (scratch / "model.onnx").write_text("new")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "model.onnx").read_text() == "new"
    assert leftovers(tmp_path) == ["out"]


def test_a_finished_draft_replaces_an_older_artifact(tmp_path: Path) -> None:
    out = old_artifact(tmp_path / "out")
    with draft(out) as scratch:
        (scratch / "manifest.json").write_text("{}")
        assert (out / "model.onnx").read_text() == "old"
    assert leftovers(out) == ["manifest.json"]
    assert leftovers(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), OSError(28, "No space")])
def test_an_older_artifact_survives_a_failure(tmp_path: Path, error: BaseException) -> None:
    out = old_artifact(tmp_path / "out")
    expected = ArtifactError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), draft(out) as scratch:
        (scratch / "model.onnx").write_text("half")
        raise error
    assert (out / "model.onnx").read_text() == "old"
    assert leftovers(tmp_path) == ["out"]


def test_a_failure_leaves_no_folders_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), draft(tmp_path / "a" / "b" / "out"):
        raise ValueError("x")
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No space left") as caught, draft(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert "\n" not in str(caught.value)


def test_a_folder_with_other_files_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="in use"):
        check_output(tmp_path)
    with pytest.raises(ArtifactError, match="is a file"):
        check_output(tmp_path / "thesis.tex")
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="can't write"):
        check_output(tmp_path / "out")


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no artifact"):
        Artifact.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        Artifact.load(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(ArtifactError, match="newer qgraph"):
        Artifact.load(tmp_path)
