"""Parses a configuration with Triton's own messages, where `tritonclient` is installed."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from qgraph.errors import ArtifactError


def check(text: str) -> bool:
    """Parse a configuration; False where `tritonclient` is not installed.

    Raises:
        ArtifactError: It can't be parsed, which is a bug in qgraph.
    """
    messages = triton_messages()
    if messages is None:
        return False
    parse(text, messages)
    return True


def parse(text: str, messages: Any) -> Any:
    """Parse a configuration into Triton's `ModelConfig`.

    Raises:
        ArtifactError: It can't be parsed.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, messages.ModelConfig())
    except text_format.ParseError as error:
        raise ArtifactError(
            f"Triton's messages refuse the configuration ({error})",
            fix="this is a bug in qgraph; report it with the options",
        ) from error


@cache
def triton_messages() -> Any:
    """The module `model_config_pb2` of `tritonclient`, or None where there is none that works.

    Loaded by its file: importing `tritonclient.grpc` takes gRPC, which nothing here needs, and
    its extra of that name an older protobuf than onnx's.
    """
    found = importlib.util.find_spec("tritonclient")
    for place in (found.submodule_search_locations or ()) if found else ():
        file = Path(place) / "grpc" / "model_config_pb2.py"
        if file.is_file():
            spec = importlib.util.spec_from_file_location("qgraph_triton_model_config", file)
            if spec is None or spec.loader is None:
                return None
            module = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except Exception:  # noqa: BLE001 - made for another protobuf than the one installed
                return None
            return module
    return None
