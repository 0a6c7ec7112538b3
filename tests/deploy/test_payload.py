"""Which artifacts are deployed at all: nobody vouches for what a folder holds."""

import json
import shutil

import onnx
import pytest
from artifacts import linear, write_artifact

from qgraph.deploy import deploy
from qgraph.errors import ArtifactError, ModelError


def test_one_that_missed_its_floor(tmp_path) -> None:
    artifact = write_artifact(tmp_path / "a", linear(), passed=False)
    with pytest.raises(ArtifactError, match=r"missed its accuracy floor .*SQNR 3.0 dB.*--force"):
        deploy(artifact, "folder", tmp_path / "out")
    done = deploy(artifact, "folder", tmp_path / "out", force=True)
    assert "missed its accuracy floor" in done.remarks.warnings[0]
    assert "| FAILED, held out data |" in (tmp_path / "out" / "README.md").read_text()


def test_one_that_was_changed(artifact, tmp_path) -> None:
    onnx.save(linear("N,4", "N,3"), artifact / "model.onnx")
    with (artifact / "model.onnx").open("ab") as file:
        file.write(b"\x08\x0a")  # ir_version once more: still a model
    with pytest.raises(ArtifactError, match=r"changed since it was compiled: model\.onnx has"):
        deploy(artifact, "folder", tmp_path / "out")
    done = deploy(artifact, "folder", tmp_path / "out", force=True)
    assert "has changed" in done.remarks.warnings[0]


def test_one_that_is_broken_is_refused_whatever_is_forced(artifact, tmp_path) -> None:
    (artifact / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not an ONNX file"):
        deploy(artifact, "folder", tmp_path / "out", force=True)
    (artifact / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing"):
        deploy(artifact, "folder", tmp_path / "out", force=True)


def test_one_without_hashes_is_taken_with_a_warning(artifact, tmp_path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"] = sorted(manifest["files"])
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    done = deploy(artifact, "folder", tmp_path / "out")
    assert "no hashes" in done.remarks.warnings[0]


def test_what_is_no_artifact(tmp_path) -> None:
    onnx.save(linear(), tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="is a file, no artifact; compile the model first"):
        deploy(tmp_path / "m.onnx", "folder", tmp_path / "out")
    with pytest.raises(ArtifactError, match="is no artifact"):
        deploy(tmp_path / "nowhere", "folder", tmp_path / "out")


def test_links_and_paths_that_lead_out(tmp_path) -> None:
    secret = tmp_path / "secret.bin"
    artifact = write_artifact(tmp_path / "a", linear(), external=True)
    shutil.move(artifact / "w.bin", secret)
    (artifact / "w.bin").symlink_to(secret)
    with pytest.raises(ArtifactError, match=r"w\.bin is a link now"):
        deploy(artifact, "folder", tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"w\.bin is missing, or no plain file"):
        deploy(artifact, "folder", tmp_path / "out", force=True)
    proto = onnx.load(artifact / "model.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret.bin"
    other = write_artifact(tmp_path / "b", linear())
    (other / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ArtifactError, match=r"names a file outside of its folder .'\.\./secret"):
        deploy(other, "folder", tmp_path / "out", force=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:\\x", "", ".", "a//b"])
def test_a_manifest_that_names_files_outside(artifact, tmp_path, name) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="names a file outside"):
        deploy(artifact, "folder", tmp_path / "out")


def test_an_engine_that_is_not_in_the_manifest(tmp_path) -> None:
    artifact = write_artifact(tmp_path / "a", linear(), target="tensorrt", engine="tensorrt")
    (artifact / "engine.plan").write_bytes(b"from somewhere")
    done = deploy(artifact, "folder", tmp_path / "out")
    assert "engine.plan is not in the manifest" in done.remarks.warnings[0]
    assert "stays behind" in done.remarks.notes[0]
