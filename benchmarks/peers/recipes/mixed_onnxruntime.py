"""onnxruntime: the layers that its debugging tool finds worst stay in float; and float16 by its converter.

There is no tool that decides by itself: its documentation says to look at the errors of activations with
`qdq_loss_debug` and to name nodes to exclude.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ort_reader import Reader

# So many of the worst activations' nodes stay in float.
WORST = (1, 2, 5, 10, 20)
_LOOKED_AT = 8


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

    whole = folder / "onnxruntime-int8.onnx"
    prepare("minmax")(model, feeds, whole)
    prepared = whole.with_name("prepared.onnx")
    order = worst_first(prepared, whole, feeds[:_LOOKED_AT])
    made = {whole.stem: "all in int8"}
    from onnxruntime import quantization

    for count in WORST:
        if count > len(order):
            break
        output = folder / f"onnxruntime-exclude{count}.onnx"
        quantization.quantize_static(
            str(prepared),
            str(output),
            Reader(feeds),
            calibrate_method=quantization.CalibrationMethod.MinMax,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            nodes_to_exclude=order[:count],
        )
        made[output.stem] = f"in float: {', '.join(order[:count])}"
    prepared.unlink()
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
