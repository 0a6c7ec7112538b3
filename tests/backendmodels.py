"""The models that onnx ships to test backends with: every operator, thousands of small graphs."""

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


@cache
def _cases() -> tuple[Any, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they overflow on purpose
        return tuple(case for kind in KINDS for case in load_model_tests(kind=kind))


def models() -> Iterator[tuple[str, onnx.ModelProto, list[Any]]]:
    """Name, model, and one set of inputs in order."""
    for case in _cases():
        if case.model is not None:
            yield case.name, case.model, list(case.data_sets[0][0])
            continue
        folder = Path(case.model_dir)
        feeds = []
        for path in sorted(folder.glob("test_data_set_0/input_*.pb")):
            feeds.append(onnx.numpy_helper.to_array(onnx.load_tensor(path)))
        yield case.name, onnx.load(folder / "model.onnx"), feeds


def as_feed(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return onnx.numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return onnx.numpy_helper.to_optional(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def normalised(proto: onnx.ModelProto) -> bytes:
    """Without what a round trip may change: empty fields that count as absent, value_info."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graphs, nodes = [copy.graph], [n for f in copy.functions for n in f.node]
    while graphs or nodes:
        for graph in graphs:
            constants = {tensor.name for tensor in graph.initializer}
            infos = [info for info in graph.value_info if info.name not in constants]
            del graph.value_info[:]
            graph.value_info.extend(infos)
            nodes.extend(graph.node)
        graphs = []
        for node in nodes:
            for field in ("domain", "name", "doc_string"):
                if not getattr(node, field):
                    node.ClearField(field)
            for attr in node.attribute:
                graphs += [attr.g] if attr.HasField("g") else list(attr.graphs)
        nodes = []
    for opset in copy.opset_import:
        if not opset.domain:
            opset.ClearField("domain")
    return copy.SerializeToString(deterministic=True)
