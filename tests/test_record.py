"""Where an artifact's original is."""

import shutil
from pathlib import Path

import onnx
import pytest

import qgraph
from qgraph.artifact import Artifact
from qgraph.errors import ArtifactError
from qgraph.record import find_original

CNN = Path(__file__).resolve().parent.parent / "models" / "digits" / "digits_cnn.onnx"


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgraph.engine_choice.BUDGET_S", 0.1)
    monkeypatch.setattr("qgraph.runtime.choose._ROUNDS", 2)


def test_the_original_is_found_while_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "m.onnx"
    shutil.copy(CNN, model)
    monkeypatch.chdir(tmp_path)
    qgraph.compile("m.onnx", output=tmp_path / "a", precision="fp32")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    artifact = Artifact.load(tmp_path / "a")
    assert find_original(artifact) == model.resolve()
    proto = onnx.load(model)
    proto.doc_string = "another"
    onnx.save(proto, model)
    with pytest.raises(ArtifactError, match="has changed.*--vs"):
        find_original(artifact)
    model.unlink()
    with pytest.raises(ArtifactError, match="not there any more; .*--vs"):
        find_original(artifact)


def test_a_model_in_memory_has_no_place(tmp_path: Path) -> None:
    artifact = qgraph.compile(onnx.load(CNN), output=tmp_path / "a", precision="fp32")
    assert artifact.manifest.source.path is None
    with pytest.raises(ArtifactError, match="from a model in memory"):
        find_original(artifact)
