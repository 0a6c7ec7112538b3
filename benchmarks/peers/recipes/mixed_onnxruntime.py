"""onnxruntime: the layers that its debugging tool finds worst stay in float; and float16 by its converter.

There is no tool that decides by itself: its documentation says to look at the errors of activations with
`qdq_loss_debug` and to name nodes to exclude.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ort_reader import Reader

# So many stay in float: of the worst activations' nodes, and of their products with what follows them.
WORST = (1, 2, 5, 10, 20)
_LOOKED_AT = 8
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ACTIVATIONS = ("Clip", "Relu")


def mixed(
    model: Path,
    feeds: list[dict[str, Any]],
    folder: Path,
    score: Callable[[Path], float],
    drop: float,
) -> dict[str, str]:
    """Write a file for each number of nodes in float, and one in float16; return notes by name."""
    import onnx
    from with_onnxruntime import prepare

    # What is left here when time is over is nobody's file.
    whole = Path("onnxruntime-int8.onnx").resolve()
    prepare("minmax")(model, feeds, whole)
    prepared = whole.with_name("prepared.onnx")
    order = worst_first(prepared, whole, feeds[:_LOOKED_AT])
    made = {whole.stem: "all in int8"}
    from onnxruntime import quantization

    shutil.move(whole, folder / whole.name)
    groups = layers(prepared, order)
    excluded = {f"exclude{n}": order[:n] for n in WORST if n <= len(order)}
    excluded |= {
        f"layers{n}": [node for each in groups[:n] for node in each]
        for n in WORST
        if n <= len(groups)
    }
    for name, nodes in excluded.items():
        output = folder / f"onnxruntime-{name}.onnx"
        quantization.quantize_static(
            str(prepared),
            str(output),
            Reader(feeds),
            calibrate_method=quantization.CalibrationMethod.MinMax,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            nodes_to_exclude=nodes,
        )
        made[output.stem] = f"in float: {', '.join(nodes)}"
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        half = convert_float_to_float16(onnx.load(str(model)), keep_io_types=True)
        onnx.save(half, str(folder / "onnxruntime-fp16.onnx"))
        made["onnxruntime-fp16"] = "float16 but for its list of operators"
    except Exception as error:  # noqa: BLE001 - said in the report
        made["onnxruntime-fp16"] = f"fails: {error}"
    return made


def worst_first(plain: Path, coded: Path, feeds: list[dict[str, Any]]) -> list[str]:
    """Names of the nodes whose quantized results are the worst, by the tool's signal-to-noise ratio."""
    import onnx
    from onnxruntime.quantization import qdq_loss_debug as debug

    values = []
    for path in (plain, coded):
        wide = path.with_name(f"wide-{path.name}")
        debug.modify_model_output_intermediate_tensors(str(path), wide)
        values.append(debug.collect_activations(str(wide), Reader(feeds)))
        wide.unlink()
    matching = debug.create_activation_matching(values[1], values[0])
    errors = debug.compute_activation_error(matching)
    makers = {out: node.name for node in onnx.load(str(plain)).graph.node for out in node.output}
    ranked = sorted(
        (each["xmodel_err"], name) for name, each in errors.items() if "xmodel_err" in each
    )
    return list(dict.fromkeys(makers[name] for _, name in ranked if makers.get(name)))


def layers(model: Path, order: list[str]) -> list[list[str]]:
    """The products among the nodes, each with its activation function, in the same order.

    With a Clip alone excluded, what goes into it is quantized, over its whole range.
    """
    import onnx

    nodes = {node.name: node for node in onnx.load(str(model)).graph.node}
    makers = {out: node.name for node in nodes.values() for out in node.output}
    followers = {
        makers[node.input[0]]: node.name
        for node in nodes.values()
        if node.op_type in ACTIVATIONS and node.input[0] in makers
    }
    found: dict[str, list[str]] = {}
    for name in order:
        product = makers.get(nodes[name].input[0]) if nodes[name].op_type in ACTIVATIONS else name
        if product is not None and nodes[product].op_type in PRODUCTS:
            found[product] = [product, *([followers[product]] if product in followers else [])]
    return list(found.values())
