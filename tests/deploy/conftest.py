from pathlib import Path

import onnx
import pytest
from artifacts import linear, write_artifact
from llamas import write_decoder

from qgraph.deploy import triton_check


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "linear.fp32", linear())


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    write_decoder(folder, kv=True)
    extra = {
        name: (folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")
    }
    return write_artifact(folder / "decoder.fp32", onnx.load(folder / "m.onnx"), extra=extra)


@pytest.fixture(scope="session")
def messages():
    """The real protobuf messages of Triton."""
    found = triton_check.triton_messages()
    if found is None:
        pytest.skip("tritonclient is not installed: pip install 'qgraph[dev]'")
    return found


@pytest.fixture
def parsed(messages):
    """Parse a model's config.pbtxt with Triton's messages."""
    return lambda place: triton_check.parse((place / "config.pbtxt").read_text(), messages)
