import sys

import numpy as np
import pytest
from harness import model

import qgraph


def test_workers_change_nothing_but_the_time(invoke, convnet, samples, cwd):
    args = ("--data", samples, "--set", "calibrate.observer=auto", "--set", "adaround.enabled=true")
    assert invoke("compile", convnet, *args, "-o", "alone").exit_code == 0
    assert invoke("compile", convnet, *args, "--workers", "2", "-o", "two").exit_code == 0
    assert (cwd / "alone/model.onnx").read_bytes() == (cwd / "two/model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "int4"), "--workers has nothing to do: int4 is made in one process"),
        (("--precision", "fp16"), "--workers has nothing to do: fp16"),
        (("--ray", "auto"), "the cluster at auto decides how many tasks run"),
    ],
)
def test_what_can_not_be_cut_up_is_refused(options, message, invoke, convnet):
    if "--ray" in options:
        pytest.importorskip("ray", reason="ray is not installed")
    result = invoke("compile", convnet, "--data", "random", "--workers", "2", *options)
    assert result.exit_code == 2 and message in result.stderr


def test_ray_is_asked_for_where_it_is_missing(invoke, convnet, samples, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = invoke("compile", convnet, "--data", samples, "--ray", "local")
    assert result.exit_code == 2 and "pip install 'qgraph[ray]'" in result.stderr


def test_a_generator_that_can_be_read_once(tmp_path):
    proto = model(
        "g (float[n,6] x) => (float[n,4] y) { a = MatMul(x, w)\n y = Relu(a) }",
        {"w": np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)},
    )

    def once():
        return (
            {"x": np.random.default_rng(i).random((1, 6)).astype(np.float32)} for i in range(40)
        )

    options = {"settings": ["calibrate.observer=mse", "correct_bias.enabled=false"]}
    alone = qgraph.calibrate(proto, data=once(), **options)
    assert qgraph.calibrate(proto, data=once(), workers=2, **options).document == alone.document
