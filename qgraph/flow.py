"""Which passes run for which precision, in which order."""

from collections.abc import Mapping, Sequence
from typing import Any

from qgraph.errors import UsageError, unknown_name
from qgraph.pipeline import Pass
from qgraph.registry import by_name
from qgraph.target import WEIGHT_ONLY, Target

Options = Mapping[str, Mapping[str, Any]]

# Clean-up runs again behind the fusions: they leave foldable constants and dead nodes.
AGAIN = ("fold_constants", "merge_equal", "drop_dead")
# Facts about the graph are taken once it stays as it is.
MARKS = ("attention", "units")
# Make the model easier to quantize without changing what it computes; a recipe switches them on.
REPAIRS = ("smooth", "equalize_layers", "equalize_depthwise")
# Those of them, and of what follows, that run the model on data.
ON_DATA = (*REPAIRS, "adaround", "correct_bias")
INSERTING = ("insert_qdq", "drop_dead")
_CALIBRATED = (
    *REPAIRS,
    "plan",
    "calibrate",
    "quantize_weights",
    "adaround",
    "correct_bias",
    *INSERTING,
)
_WEIGHT_ONLY = ("linear_to_matmul", "weight_only", "drop_dead")
# Codes in floating point need none of the repairs: their steps are as fine as values are small.
# What is not in float8 is in fp16.
_FLOAT8_QDQ = ("plan", "calibrate", "quantize_weights", *INSERTING, "half")
_FLOAT8 = ("linear_to_matmul", "fp8", "drop_dead", "half")
QUANTIZING: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("half",),
    "bf16": ("half",),
    "fp8": _FLOAT8_QDQ,
    "int8": _CALIBRATED,
    "w8a16": _CALIBRATED,
    "int8-dynamic": ("dynamic_int8", "drop_dead"),
    **dict.fromkeys(WEIGHT_ONLY, _WEIGHT_ONLY),
}
IMPLIED: dict[str, dict[str, Any]] = {
    "fp16": {"half": {"dtype": "float16"}},
    "bf16": {"half": {"dtype": "bfloat16"}},
    "fp8": {
        "plan": {"precision": "fp8"},
        "linear_to_matmul": {"convolutions": False},
        "half": {"dtype": "float16"},
    },
    "w8a16": {"plan": {"precision": "w8a16"}},
    **{name: {"weight_only": {"bits": bits}} for name, bits in WEIGHT_ONLY.items()},
}


def exact_passes(
    options: Options, own: Sequence[Pass] = (), target: Target | None = None
) -> list[Pass]:
    """Passes that keep the model's numbers: normalize, clean up, fuse, clean up again.

    Args:
        options: By pass name.
        own: The caller's passes, which run between clean-up and fusions.
        target: Its lowering runs in front of the fusions, which see the operators that will run.
    """
    from qgraph.passes.cleanup import CLEANUP
    from qgraph.passes.fusions import FUSIONS

    fusions = [name for name in _names(FUSIONS) if name not in MARKS]
    before = build(["normalize", *_names(CLEANUP)], options)
    lowering = target.lowering if target is not None else ()
    after = [*lowering, *fusions, *AGAIN, "infer_shapes", *MARKS]
    return [*before, *own, *build(after, options)]


def quantizing_passes(precision: str, options: Options, target: Target | None = None) -> list[Pass]:
    """Passes that bring the model to `precision`, for a target or for none in particular."""
    names, implied = QUANTIZING[precision], IMPLIED.get(precision, {})
    if precision == "fp8" and target is not None and target.float8 is not None:
        names = _FLOAT8
    if precision in WEIGHT_ONLY and target is not None and target.float_type:
        names = (*names, *QUANTIZING[target.float_type])
        implied = implied | IMPLIED[target.float_type]
    merged = {**options}
    for name, values in implied.items():
        merged[name] = {**options.get(name, {}), **values}
    names = _with_io(names, options)
    lowered = lowering_passes(precision, options, target)
    # Before `half`, which then decides about the operators that really run, and sees no masks.
    ends = [names.index(name) for name in ("half", "quantize_io") if name in names]
    end = min(ends, default=len(names))
    return [*build(names[:end], merged), *lowered, *build(names[end:], merged)]


def lowering_passes(precision: str, options: Options, target: Target | None) -> list[Pass]:
    """Passes that write the operators that all of the target's engines add to ONNX's."""
    from qgraph.passes.contrib.lowering import lowering

    if target is None or target.contributed is None:
        return []
    return lowering(target.contributed, _float_type(precision, target), options)


def own_passes(precision: str, options: Options, target: Target) -> dict[str, list[Pass]]:
    """Passes that write a compiled model for one engine alone, by the engine's name."""
    from qgraph.passes.contrib.lowering import lowering

    if precision != "fp32" and precision not in WEIGHT_ONLY:
        return {}  # what runs in integers has its own kernels, also for sums and norms
    float_type = _float_type(precision, target)
    found = {name: lowering(own, float_type, options) for name, own in target.own.items()}
    return {name: passes for name, passes in found.items() if passes}


def _float_type(precision: str, target: Target) -> str:
    """Return what the float parts of a compiled model compute in."""
    if precision in ("fp32", "fp16", "bf16"):
        return precision
    return target.float_type or "fp32"


def kernel_passes(precision: str, options: Options, target: Target) -> list[Pass]:
    """Passes that write kernels of the target's own, which the reference does not have.

    What the other passes leave computes the same in operators of the ONNX standard.
    """
    if precision != "fp8" or target.float8 is None:
        return []
    return build([target.float8.kernel], options)


def _with_io(names: tuple[str, ...], options: Options) -> tuple[str, ...]:
    """Add what changes the types of inputs and outputs, where `--io` asks for it."""
    from qgraph.passes.quantize_io import QuantizeIO

    wanted = QuantizeIO.with_options(options.get(QuantizeIO.name, {}))
    if not (isinstance(wanted, QuantizeIO) and wanted.active):
        return names
    integers = "insert_qdq" in names and "half" not in names
    first = ("fold_images",) if integers and wanted.inputs != "float" else ()
    return (*first, *names, QuantizeIO.name)


def calibrating_passes(options: Options) -> list[Pass]:
    """Passes of int8 up to the one that finds the encodings."""
    names = QUANTIZING["int8"]
    return build(names[: names.index("calibrate") + 1], options)


def without_data(options: Options) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return options with everything that runs the model on data switched off, and its names."""
    merged = {name: dict(values) for name, values in options.items()}
    off = [p.name for p in build(ON_DATA, options) if p.options().get("enabled")]
    for name in off:
        merged.setdefault(name, {})["enabled"] = False
    return merged, off


def build(names: list[str] | tuple[str, ...], options: Options) -> list[Pass]:
    """Build passes by name with the recipe's options."""
    from qgraph.passes import pass_class

    return [pass_class(name).with_options(options.get(name, {})) for name in names]


def check_options(options: Options) -> None:
    """Refuse options for passes that do not exist, and values a pass does not take.

    Raises:
        UsageError: With the nearest name suggested.
    """
    from qgraph.passes import all_passes

    known = all_passes()
    for name, values in options.items():
        if name not in known:
            raise unknown_name("pass", name, known)
        if not isinstance(values, Mapping):
            raise UsageError(f"options of {name!r} must be a table", fix="write pass.option=value")
        known[name].with_options(values)


def _names(references: list[str]) -> list[str]:
    return list(by_name(references))
