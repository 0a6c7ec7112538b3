import numpy as np
import onnxruntime
import pytest
from runtime_models import small_cnn

from qgraph.errors import EngineError
from qgraph.runtime import GPU_PAYS_BYTES, backend, observing_backend
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.reference import open_reference

CUDA = backend("onnxruntime-cuda")


def needs_cuda() -> None:
    if reason := CUDA.unavailable():
        pytest.skip(f"the CUDA engine can't run here: {reason}")


def test_without_cuda_the_reason_and_the_fix_are_named():
    reason = CUDA.unavailable()
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert reason is not None
        assert "no CUDA provider" in reason and "qgraph[cuda]" in reason
    if reason is not None:
        with pytest.raises(EngineError) as caught:
            CUDA.open(small_cnn().SerializeToString())
        assert str(caught.value) == reason


def test_only_float32_is_offered():
    with pytest.raises(EngineError, match="bf16 is not offered"):
        CUDA.open(small_cnn().SerializeToString(), EngineOptions(float_precision="bf16"))


@pytest.mark.parametrize("size", [GPU_PAYS_BYTES - 1, GPU_PAYS_BYTES])
def test_large_models_are_calibrated_on_the_gpu(tmp_path, size):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"m")
    with open(tmp_path / "model.onnx.data", "wb") as data:
        data.truncate(size - 1)
    gpu = size >= GPU_PAYS_BYTES and CUDA.unavailable() is None
    assert observing_backend(model).name == ("onnxruntime-cuda" if gpu else "onnxruntime-cpu")


def test_numbers_and_provider_are_those_asked_for():
    needs_cuda()
    model = small_cnn().SerializeToString()
    rng = np.random.default_rng(0)
    with CUDA.open(model, EngineOptions(profile=True)) as session, open_reference(model) as exact:
        info = session.inputs[0]
        shape = [dim if isinstance(dim, int) else 2 for dim in info.shape]
        feeds = {info.name: rng.standard_normal(shape).astype(np.float32)}
        for name, array in exact.run(feeds).items():
            # TF32 would be off by 1e-3.
            np.testing.assert_allclose(session.run(feeds)[name], array, rtol=1e-4, atol=1e-5)
        convs = [op for op in session.executed() if "Conv" in op.op_type]
        assert convs and {op.provider for op in convs} == {"CUDAExecutionProvider"}
