"""A search on the GPU: what float16 ruins is found by running, and times are those of the best way to run."""

from collections import Counter

import numpy as np
import pytest
from planted import cancelling

from qgraph.runtime import backend
from qgraph.search import compile_within
from qgraph.search.ways import way

CUDA = backend("onnxruntime-cuda")


@pytest.fixture(autouse=True)
def needs_cuda():
    if reason := CUDA.unavailable():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return cancelling(tmp_path_factory.mktemp("cancelling"))


def search(network, folder, **options):
    rows = {"t0": np.random.default_rng(1).normal(size=(240, 2048)).astype(np.float32)}
    given = {"max_drop": "5%", "target": "cuda", "recipe": "fast", **options}
    artifact = compile_within(network, data=rows, output=folder / "a", **given)
    found = artifact.read_json("search.json")
    return artifact, found, {unit["name"]: unit for unit in found["units"]}


def test_a_layer_that_float16_ruins_is_kept_out_of_it(network, tmp_path):
    artifact, found, units = search(network, tmp_path)
    whole = {row["name"]: row for row in found["whole"]}
    assert whole["fp16"]["drop"] > 0.5, "float16 was to ruin the model"
    promise = artifact.manifest.promise
    assert promise.holds and promise.relative_time < 1 and not promise.latency_estimated
    assert way(units["g2"]["precision"]).rest == "fp32"


def test_emulated_losses_are_those_of_the_gpu(network, tmp_path):
    """All in float16 but the one layer, and all of it: what the sweep says is what the GPU does."""
    wanted = [*(f"g{i}=fp16" for i in (0, 1, 3)), "y=fp32", "low=fp32"]
    artifact, found, units = search(network, tmp_path / "b", assign=[*wanted, "g2=fp32"])
    assert artifact.manifest.promise.holds
    counts = Counter(unit["precision"] for unit in units.values())
    assert counts == {"fp16": 3, "fp32": 3}
    _, found, units = search(network, tmp_path / "c", assign=[*wanted, "g2=fp16"], max_drop="100%")
    losses = {each["way"]: each["loss"] for each in units["g2"]["ways"]}
    assert losses["fp16"] > 0.1 and found["verified"][0]["drop"] > 0.5
