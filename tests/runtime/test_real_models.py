import numpy as np
import pytest
from realmodels import shared

from qgraph.runtime import backend
from qgraph.runtime.bench import bench
from qgraph.runtime.compare import Comparison
from qgraph.runtime.executed import executed_ops
from qgraph.runtime.feeds import random_feeds
from qgraph.runtime.reference import open_reference

CPU = backend("onnxruntime-cpu")


@pytest.mark.parametrize("name", ["mobilenet_v2", "ppocrv6_rec_small"])
def test_optimized_engine_agrees_with_the_reference(name: str, rng: np.random.Generator) -> None:
    path = shared("models", f"{name}.onnx")
    comparison = Comparison()
    with open_reference(path) as reference, CPU.open(path) as session:
        assert reference.inputs == session.inputs
        for _ in range(2):
            feeds = random_feeds(session.inputs, rng)
            comparison.add(reference.run(feeds), session.run(feeds))
    (result,) = comparison.results()
    assert result.nonfinite_mismatch == 0 and result.samples == 2
    assert result.sqnr_db is not None and result.sqnr_db > 80
    assert result.max_relative is not None and result.max_relative < 1e-4


def test_unfused_batchnorm_runs_fused(rng: np.random.Generator) -> None:
    path = shared("models", "mobilenet_v2.onnx")
    with CPU.open(path) as session:
        feeds = random_feeds(session.inputs, rng)
    ops = executed_ops(path, feeds, CPU, runs=1)
    types = [op.op_type for op in ops]
    assert types.count("Conv") == 52 and "BatchNormalization" not in types
    assert {op.provider for op in ops} == {"CPUExecutionProvider"}
    assert sum(op.time_us or 0 for op in ops) > 500


@pytest.mark.slow
def test_a_model_is_as_fast_as_itself(rng: np.random.Generator) -> None:
    path = shared("models", "mobilenet_v2.onnx")
    with CPU.open(path) as first, CPU.open(path) as second:
        feeds = random_feeds(first.inputs, rng)
        _, again = bench({"a": first, "b": second}, feeds, seconds=2.0)
    # Run by run in turn, without rests, both would be equally wrong; this is about the ratio.
    assert 0.6 < again.relative_time < 1.6
