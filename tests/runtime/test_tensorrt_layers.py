"""The inspector's JSON in both of its spellings, mapped back to nodes."""

import json

import pytest

from qgraph.errors import EngineError
from qgraph.runtime.layers import map_layers
from qgraph.runtime.tensorrt.layers import parse_layers

TEN = json.dumps(
    {
        "Layers": [
            {
                "Name": "Reformatting CopyNode for Input Tensor 0 to /conv1",
                "LayerType": "Reformat",
                "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
                "Outputs": [{"Name": "r", "Format/Datatype": "Row major Int8 format"}],
                "Metadata": "",
            },
            {
                "Name": "/conv1 + /relu1",
                "LayerType": "CaskConvolution",
                "Inputs": [
                    {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}
                ],
                "Outputs": [
                    {"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}
                ],
                "TacticName": "sm80_xmma_fprop",
                "Metadata": "[ONNX Layer: /conv1]\x1f[ONNX Layer: /relu1]\x1e[ONNX Layer: /conv1]",
            },
            {
                "Name": "/fc",
                "LayerType": "gemm",
                "Inputs": [{"Format/Datatype": "Half"}],
                "Outputs": [{"Format/Datatype": "Float"}],
                "Metadata": "[ONNX Layer: /fc]",
            },
        ],
        "Bindings": ["x", "y"],
    }
)
ELEVEN = json.dumps(
    {
        "Layers": [
            {
                "Name": "__myl_Conv",
                "LayerType": "kgen",
                "Inputs": [{"Name": "a", "DataType": "FP8", "Format": "kLINEAR"}],
                "Outputs": [{"Name": "b", "DataType": "BF16", "Format": "kLINEAR"}],
                "Metadata": "[ONNX Layer: a/b.c]",
            }
        ],
        "I/O Tensors": [{"Name": "x", "IOMode": "Input"}],
    }
)


def test_layers_have_nodes_types_and_times():
    reformat, conv, fc = parse_layers(TEN, {"/conv1 + /relu1": 12.5})
    assert reformat.reformats and not reformat.fused and reformat.nodes == ()
    assert (reformat.reads, reformat.writes) == (("fp32",), ("int8",))
    assert conv.nodes == ("/conv1", "/relu1") and conv.fused and not conv.reformats
    assert (conv.reads, conv.writes, conv.tactic) == (("int8",), ("fp16",), "sm80_xmma_fprop")
    assert conv.time_us == 12.5 and fc.time_us is None
    assert (fc.reads, fc.writes) == (("fp16",), ("fp32",))


def test_the_newer_spelling():
    (layer,) = parse_layers(ELEVEN)
    assert (layer.nodes, layer.reads, layer.writes) == (("a/b.c",), ("fp8",), ("bf16",))


def test_without_details_there_are_names():
    (layer,) = parse_layers('{"Layers": ["conv + relu"]}', {"conv + relu": 3.0})
    assert (layer.name, layer.time_us, layer.nodes) == ("conv + relu", 3.0, ())


def test_what_did_not_run_as_planned_comes_first_then_the_slowest():
    times = {"/conv1 + /relu1": 12.5, "/fc": 1.0}
    plan = {"/conv1": "int8", "/relu1": "fused", "/fc": "int8"}
    mapped = map_layers(parse_layers(TEN, times), plan)
    assert [each.layer.name for each in mapped][:2] == ["/fc", "/conv1 + /relu1"]
    assert [(each.planned, each.as_planned) for each in mapped[:2]] == [
        ("int8", False),
        ("int8", True),
    ]
    assert mapped[2].layer.reformats and mapped[2].as_planned


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": [3]}', "null", '{"Layers": 3'])
def test_what_is_no_description_is_refused(text):
    with pytest.raises(EngineError, match="can't be read"):
        parse_layers(text)
