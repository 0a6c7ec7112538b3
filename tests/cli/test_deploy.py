"""deploy and verify, from compile on."""

import json

import numpy as np
import pytest
from artifacts import linear, tree, write_artifact


@pytest.fixture
def artifact(tmp_path):
    return write_artifact(tmp_path / "net.fp32", linear())


def digest(result):
    """The manifest's hash that verify printed."""
    return result.stdout.strip().rsplit(" ", 1)[1]


def test_what_compile_writes_is_verified_deployed_and_verified(invoke, convnet, samples, cwd):
    assert invoke("compile", convnet, "--data", samples, "-q").exit_code == 0
    verified = invoke("verify", "convnet.int8")
    assert verified.exit_code == 0 and "3 files" in verified.stdout
    deployed = invoke(
        *("deploy", "convnet.int8", "repo", "--to", "triton", "--name", "net"),
        *("--max-batch", 4, "--preferred-batch", "2,4", "--backend", "onnxruntime"),
    )
    assert deployed.exit_code == 0, deployed.stderr
    assert "net, version 1" in deployed.stdout and "up to 4" in deployed.stdout
    assert "repo/net/README.md" in deployed.stdout and deployed.stderr == ""
    assert "preferred_batch_size: [2, 4]" in (cwd / "repo/net/config.pbtxt").read_text()
    assert invoke("verify", "repo/net").exit_code == 0
    # What was not given is as it was before.
    again = invoke(
        "deploy", "convnet.int8", "repo", "--to", "triton", "--name", "net", "--version", 7
    )
    assert again.exit_code == 0 and "net, version 7" in again.stdout and "up to 4" in again.stdout


def test_json_and_what_verbose_adds(invoke_json, invoke, artifact, cwd):
    found = invoke_json("deploy", artifact, "out", "--to", "folder")
    assert (found["to"], found["folder"]) == ("folder", "out")
    assert sorted(found["files"]) == sorted(f"out/{name}" for name in tree(cwd / "out"))
    assert found["warnings"] == found["notes"] == []
    shown = invoke("deploy", artifact, "out", "--to", "folder", "-v").stdout
    assert all(name in shown for name in found["files"])


def test_the_further_version_is_announced(invoke, artifact, tmp_path, cwd):
    invoke("deploy", artifact, "repo", "--to", "triton", "--name", "n")
    other = write_artifact(tmp_path / "other", linear(), precision="fp16")
    done = invoke("deploy", other, "repo", "--to", "triton", "--name", "n")
    assert "n, version 2" in done.stdout and "config.pbtxt stays as it was" in done.stderr
    assert invoke("deploy", other, "repo", "--to", "triton", "--name", "n", "-q").exit_code == 1


def test_a_failed_artifact(invoke, tmp_path, cwd):
    failed = write_artifact(tmp_path / "failed", linear(), passed=False)
    refused = invoke("deploy", failed, "out", "--to", "folder")
    assert refused.exit_code == 1 and refused.stderr.count("\n") == 1
    assert "missed its accuracy floor" in refused.stderr and "--force" in refused.stderr
    forced = invoke("deploy", failed, "out", "--to", "folder", "--force", "-q")
    assert forced.exit_code == 0 and "qgraph: warning: the artifact missed" in forced.stderr


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["repo"], 2, "Missing option '--to'"),
        (["repo", "--to", "tritn"], 2, "unknown destination 'tritn'; did you mean 'triton'?"),
        (["repo", "--to", "folder", "--max-batch", "2"], 2, "--max-batch is not for folder"),
        (["repo", "--to", "triton", "--preferred-batch", "4;8"], 2, "is no list of numbers"),
        (["repo", "--to", "triton", "--gpus", "-1"], 2, "is no list of numbers"),
        (["repo", "--to", "triton", "--version", "0"], 2, "--version"),
        (["repo", "--to", "triton", "--backend", "tensorrt"], 1, "has no engine.plan"),
        (["repo", "--to", "triton", "--data", "none.npz"], 1, "none.npz"),
    ],
)
def test_wrong_options(invoke, artifact, cwd, words, code, line):
    result = invoke("deploy", artifact, *words)
    assert result.exit_code == code and line in result.stderr
    assert result.stderr.count("\n") == 1 and not (cwd / "repo").exists()


# -- verify ----------------------------------------------------------------------------------------


def test_an_intact_artifact(invoke, invoke_json, artifact):
    result = invoke("verify", artifact)
    assert result.exit_code == 0 and "1 file, " in result.stdout and "as written" in result.stdout
    found = invoke_json("verify", artifact)
    assert found["intact"] and found["unchanged"] == ["model.onnx"]
    assert found["manifest"]["sha256"] == digest(result)


@pytest.mark.parametrize("same_size", [True, False])
def test_a_changed_file(invoke, artifact, same_size):
    content = bytearray((artifact / "model.onnx").read_bytes())
    content[-1:] = [content[-1] ^ 1] if same_size else []
    (artifact / "model.onnx").write_bytes(content)
    result = invoke("verify", artifact)
    assert result.exit_code == 1 and "1 changed" in result.stdout
    assert ("has other content" if same_size else "bytes, had") in result.stdout


def test_a_missing_file_a_link_and_a_pipe(invoke, invoke_json, tmp_path):
    import os

    extra = {name: b"x" for name in ("gone", "link", "pipe", "sub")}
    artifact = write_artifact(tmp_path / "a", linear(), extra=extra)
    for name in extra:
        (artifact / name).unlink()
    (artifact / "link").symlink_to(artifact / "model.onnx")
    os.mkfifo(artifact / "pipe")
    (artifact / "sub").symlink_to(tmp_path)
    result = invoke("verify", artifact, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and found["missing"] == ["gone"] and not found["intact"]
    assert found["changed"] == {
        "link": "is a link now",
        "pipe": "is no file",
        "sub": "is a link now",
    }


def test_a_model_that_is_gone(invoke, artifact):
    (artifact / "model.onnx").unlink()
    result = invoke("verify", artifact)
    assert result.exit_code == 1 and "model.onnx" in result.stdout and "is missing" in result.stdout


def test_added_files_count_with_strict_alone(invoke, artifact):
    (artifact / "sub").mkdir()
    (artifact / "sub" / "notes.txt").write_text("mine")
    result = invoke("verify", artifact)
    assert result.exit_code == 0 and "sub/notes.txt" in result.stdout and "1 added" in result.stdout
    assert invoke("verify", artifact, "--strict").exit_code == 1


def test_a_manifest_that_was_rewritten(invoke, artifact):
    before = digest(invoke("verify", artifact))
    assert invoke("verify", artifact, "--expect", before.upper()).exit_code == 0
    manifest = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps(manifest | {"precision": "int8"}))
    assert invoke("verify", artifact).exit_code == 0
    result = invoke("verify", artifact, "--expect", before)
    assert result.exit_code == 1 and "is not the one expected" in result.stdout
    wrong = invoke("verify", artifact, "--expect", "123")
    assert wrong.exit_code == 2 and "is no SHA-256" in wrong.stderr


def test_manifests_of_before_there_were_hashes(invoke, artifact):
    manifest = json.loads((artifact / "manifest.json").read_text())
    for files in (["model.onnx"], []):
        (artifact / "manifest.json").write_text(json.dumps(manifest | {"files": files}))
        result = invoke("verify", artifact)
        assert result.exit_code == 1 and "has no hashes: it was written before" in result.stderr


def test_what_is_no_artifact(invoke, tmp_path):
    result = invoke("verify", tmp_path)
    assert result.exit_code == 1 and "is no artifact" in result.stderr


def test_a_deployment_that_was_edited(invoke, artifact, cwd):
    invoke("deploy", artifact, "repo", "--to", "triton", "--name", "n")
    with (cwd / "repo/n/config.pbtxt").open("a") as file:
        file.write("# mine\n")
    result = invoke("verify", "repo/n")
    assert result.exit_code == 1 and "config.pbtxt" in result.stdout


def test_large_files_are_read_piece_by_piece(tmp_path):
    import hashlib
    import tracemalloc

    from qgraph.file_hashes import sha256_of

    content = np.random.default_rng(0).bytes(24 << 20)
    (tmp_path / "large").write_bytes(content)
    tracemalloc.start()
    found = sha256_of(tmp_path / "large")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == hashlib.sha256(content).hexdigest() and peak < 8 << 20
