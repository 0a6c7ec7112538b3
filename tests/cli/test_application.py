import json
import re
import signal
import subprocess
import sys
import time

import pytest

from qgraph import __version__
from qgraph.cli import COMMANDS

HEAVY = {"onnx", "onnx_ir", "onnxruntime", "numpy", "networkx", "PIL", "torch"}


def one_error(result) -> str:
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("qgraph: error: "), result.stderr
    return lines[0]


def test_version(invoke):
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"qgraph {__version__}\n")


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_every_help_has_examples(invoke, name):
    result = invoke(*([name] if name else []), "--help")
    assert result.exit_code == 0
    assert "Examples" in result.stdout and f"qgraph {name or 'compile'}" in result.stdout


def test_nothing_given_is_wrong_usage_and_shows_help(invoke):
    result = invoke()
    assert result.exit_code == 2 and "Commands" in result.stdout


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["compile", "--help"]])
def test_help_and_version_import_nothing_heavy(args):
    code = (
        "import sys\nfrom qgraph.cli import main\nsys.argv = ['qgraph', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('MODULES', *sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.rpartition("MODULES ")[2].split())
    assert "qgraph" in loaded and not loaded & HEAVY


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["complie"], "'compile'"),
        (["compile", "--precison", "int8", "m.onnx"], "did you mean '--precision'?"),
        (["compile"], "MODEL.onnx"),
        (["compile", "m.onnx", "--samples", "0"], "--samples"),
        (["compile", "m.onnx", "--samples", "many"], "integer"),
        (["diff", "a.onnx"], "'B'"),
        (["passes", "a", "b"], "b"),
        (["bench", "m.onnx", "--seconds", "-1"], "--seconds"),
    ],
)
def test_wrong_usage_is_one_line_and_2(invoke, args, what):
    result = invoke(*args)
    assert result.exit_code == 2 and what in one_error(result) and not result.stdout


def test_an_error_in_json_is_one_document(invoke):
    result = invoke("inspect", "nowhere.onnx", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["where"] == "nowhere.onnx" and error["exit_code"] == 1
    assert "nowhere.onnx" in one_error(result)


def test_wrong_usage_in_json_is_one_document(invoke):
    result = invoke("inspect", "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["exit_code"] == 2


@pytest.mark.parametrize("args", [["-v", "-v", "inspect", "x"], ["inspect", "x", "-vv"]])
def test_two_v_show_the_traceback(invoke, args):
    result = invoke(*args)
    assert result.exit_code == 1 and "Traceback" in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("qgraph: error: x: no such file")


def test_one_v_in_each_place_add_up(invoke):
    assert "Traceback" in invoke("-v", "inspect", "x", "-v").stderr
    assert "Traceback" not in invoke("-v", "inspect", "x").stderr


def test_names_are_no_markup_and_steer_no_terminal(invoke):
    result = invoke("inspect", "[red]\x1b[31m.onnx")
    assert result.exit_code == 1
    assert "[red]" in result.stderr and "\x1b" not in result.stderr


def test_a_bug_is_one_line_too(invoke, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("qgraph.target.targets", broken)
    result = invoke("targets")
    assert result.exit_code == 1 and "bug in qgraph" in one_error(result)


def test_running_out_of_memory_is_no_bug(invoke, monkeypatch):
    def broken(*_):
        raise MemoryError

    monkeypatch.setattr("qgraph.target.targets", broken)
    assert "out of memory" in one_error(invoke("targets"))


def test_ctrl_c_is_one_line_and_130(start, convnet):
    process = start("bench", convnet, "--seconds", "60")
    assert "measuring" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "qgraph: interrupted\n")


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_error(start, extra):
    process = start("recipes", *extra)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=20) == 141 and err == ""


def test_a_closed_stdout_does_not_matter_to_errors(start):
    process = start("inspect", "nowhere.onnx", "--json")
    process.stdout.close()
    assert "nowhere.onnx" in process.stderr.read() and process.wait(timeout=20) in (1, 141)


def test_output_that_the_terminal_cannot_spell(start, tmp_path):
    process = start("inspect", tmp_path / "grüße.onnx", env={"PYTHONIOENCODING": "ascii"})
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1 and "no such file" in err and "Traceback" not in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(invoke, shell):
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert "_QGRAPH_COMPLETE" in result.stdout and f"complete_{shell}" in result.stdout


def test_completion_takes_the_shell_from_the_environment(invoke):
    assert "complete_zsh" in invoke("completion", env={"SHELL": "/usr/bin/zsh"}).stdout
    unknown = invoke("completion", env={"SHELL": "/bin/tcsh"})
    assert unknown.exit_code == 2 and "tcsh" in one_error(unknown)
    assert "did you mean 'bash'?" in one_error(invoke("completion", "bahs"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("qgraph ins", {"inspect"}),
        (
            "qgraph compile --precision int",
            {"int8", "int8-dynamic", "int8-weights", "int4", "int3", "int2"},
        ),
        ("qgraph compile m.onnx --recipe imagenet-", {"imagenet-half", "imagenet-mean"}),
        ("qgraph compile --target c", {"cpu", "cpu-x86", "cuda"}),
        ("qgraph bench --engine onnxruntime-c", {"onnxruntime-cpu", "onnxruntime-cuda"}),
    ],
)
def test_completion_completes(start, words, expected):
    environment = {
        "_QGRAPH_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    out, err = start(env=environment).communicate(timeout=20)
    assert set(out.split()) == expected, err


def test_bash_itself_completes(tmp_path, start):
    bash = subprocess.run(["bash", "--version"], capture_output=True, check=False)
    if bash.returncode:
        pytest.skip("there is no bash here")
    script, _ = start("completion", "bash").communicate(timeout=20)
    (tmp_path / "qgraph").write_text(f'#!/bin/sh\nexec {sys.executable} -m qgraph "$@"\n')
    (tmp_path / "qgraph").chmod(0o755)
    function = re.search(r"complete .*-F (\w+)", script)[1]
    lines = [
        f"PATH={tmp_path}:$PATH",
        script,
        "COMP_WORDS=(qgraph rec); COMP_CWORD=1",
        f"{function} qgraph",
        'echo "${COMPREPLY[@]}"',
    ]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "recipes"
