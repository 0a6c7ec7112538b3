"""Versions of a model beside each other in Triton's repository."""

import errno
import json
import os
import shutil

import pytest
from artifacts import identity, linear, tree, write_artifact

from qgraph.deploy import deploy
from qgraph.errors import ArtifactError


def test_a_further_version_touches_nothing(artifact, tmp_path, parsed) -> None:
    repo = tmp_path / "repo"
    first = deploy(artifact, "triton", repo, name="net", max_batch=4)
    (first.folder / "config.pbtxt").write_text(
        (first.folder / "config.pbtxt").read_text().replace("count: 1", "count: 2")
    )
    before = tree(first.folder)
    other = write_artifact(tmp_path / "better", linear(), precision="fp16")
    second = deploy(other, "triton", repo, name="net")
    after = tree(second.folder)
    assert after.pop("2/model.onnx") == (other / "model.onnx").read_bytes()
    record = json.loads(after.pop("qgraph.json"))
    before.pop("qgraph.json")
    assert after == before and sorted(record["versions"]) == ["1", "2"]
    assert parsed(second.folder).max_batch_size == 4
    assert {path.name for path in second.files} == {"model.onnx", "qgraph.json"}
    assert deploy(other, "triton", repo, name="net", version=5).folder == second.folder
    with pytest.raises(ArtifactError, match="version 2 is there already; .*next one, 6"):
        deploy(other, "triton", repo, name="net", version=2)


def test_the_same_artifact_twice_is_most_likely_a_mistake(artifact, tmp_path) -> None:
    deploy(artifact, "triton", tmp_path / "repo")
    with pytest.raises(ArtifactError, match="there already, as version 1; pass --version 2"):
        deploy(artifact, "triton", tmp_path / "repo")


@pytest.mark.parametrize(
    ("proto", "options", "line"),
    [
        (linear(), {"max_batch": 16}, "max_batch_size: 8 there, 16 now"),
        (identity(["N", 4]), {}, "output: "),
        (linear(), {"backend": "openvino"}, "backend: onnxruntime there, openvino now"),
    ],
)
def test_a_version_that_needs_another_configuration(
    artifact, tmp_path, proto, options, line
) -> None:
    place = deploy(artifact, "triton", tmp_path / "repo", name="net").folder
    before = tree(place)
    other = write_artifact(tmp_path / "other", proto)
    with pytest.raises(ArtifactError, match=line):
        deploy(other, "triton", tmp_path / "repo", name="net", **options)
    assert tree(place) == before


def test_what_is_not_ours_is_left_alone(artifact, tmp_path) -> None:
    repo = tmp_path / "repo"
    (repo / "theirs" / "1").mkdir(parents=True)
    (repo / "theirs" / "config.pbtxt").write_text("name: 'theirs'")
    with pytest.raises(ArtifactError, match="did not write it"):
        deploy(artifact, "triton", repo, name="theirs")
    with pytest.raises(ArtifactError, match="holds one model"):
        deploy(artifact, "triton", repo / "theirs")
    (repo / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="did not write it"):
        deploy(artifact, "triton", repo, name="link")
    (repo / "file").write_text("")
    with pytest.raises(ArtifactError, match="is no folder"):
        deploy(artifact, "triton", repo / "file")
    with pytest.raises(ArtifactError, match="holds one model"):
        deploy(artifact, "triton", write_artifact(tmp_path / "b", linear()))
    deploy(artifact, "triton", repo, name="ours")
    (repo / "ours" / "qgraph.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"qgraph\.json is missing, damaged"):
        deploy(artifact, "triton", repo, name="ours")


@pytest.mark.parametrize("first", [True, False])
def test_a_full_disk_leaves_nothing_behind(artifact, tmp_path, monkeypatch, first) -> None:
    repo = tmp_path / "repo"
    if not first:
        deploy(
            write_artifact(tmp_path / "old", linear(), precision="fp16"), "triton", repo, name="n"
        )
    before = tree(tmp_path)

    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ArtifactError, match="No space left"):
        deploy(artifact, "triton", repo, name="n")
    assert tree(tmp_path) == before and repo.exists() is not first
