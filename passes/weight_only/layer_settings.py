"""How each layer is quantized: the options of the pass, or those that a line has for its name."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qgraph.context import Context
from qgraph.encoding import Spec
from qgraph.errors import UsageError
from qgraph.passes.weight_only.fitting import slower, whole_blocks
from qgraph.passes.weight_only.layers import Layer
from qgraph.passes.weight_only.solve import MIXED, Settings
from qgraph.passes.weight_only.wishes import check_fits, last_wish, read_wishes
from qgraph.passes.weights import WEIGHT_QUANTIZERS
from qgraph.passes.weights.gptq import GPTQOptions
from qgraph.passes.weights.grid import SHARES, RangeSearch
from qgraph.pipeline import PassReport
from qgraph.target import WeightOnlyRules

if TYPE_CHECKING:
    from qgraph.passes.weight_only.quantize import WeightOnly

# What methods that need data are replaced with where there is none.
WITHOUT_DATA = "clipped"
ON_DATA = ("gptq", MIXED)


def asked_of(
    options: "WeightOnly", layers: Sequence[Layer], refused: dict[str, str]
) -> "dict[Layer, WeightOnly]":
    """Return the options of each layer; what is to stay in float is refused.

    Options of layers that a line names have that line alone in `layers`, others none.
    """
    wishes, asked = read_wishes(options.layers), {}
    check_fits(wishes, layers, refused)
    uniform = options.method in WEIGHT_QUANTIZERS
    for layer in layers:
        wish = last_wish(wishes, layer)
        if wish is None:
            asked[layer] = replace(options, layers=())
        elif wish.bits is None:
            refused[layer.name] = f"weight_only.layers says so: {wish.line!r}"
        else:
            asked[layer] = replace(
                options,
                bits=wish.bits,  # type: ignore[arg-type]
                group=options.group if wish.group is None else wish.group,
                method=wish.method or (options.method if uniform else "gptq"),  # type: ignore[arg-type]
                layers=(wish.line,),
            )
    return asked


def own_settings(
    asked: "Mapping[Layer, WeightOnly]",
    refused: dict[str, str],
    rules: WeightOnlyRules,
    report: PassReport,
    context: Context,
) -> dict[Layer, Settings]:
    """Return how each layer is quantized; what its options don't suit is refused."""
    found: dict[Layer, Settings] = {}
    for options in dict.fromkeys(asked.values()):
        layers = [layer for layer, each in asked.items() if each == options]
        settings = settings_of(options, rules, report, context)
        refused.update(_unsuited(options, layers, settings, context, report))
        layers = [layer for layer in layers if layer.name not in refused]
        if settings.uniform:
            blocks, broken = whole_blocks(layers, options.group, rules)
            refused.update(broken)
            settings = replace(settings, blocks=blocks)
            layers = [layer for layer in layers if layer.name not in broken]
        found |= dict.fromkeys(layers, settings)
    return found


def settings_of(
    options: "WeightOnly", rules: WeightOnlyRules, report: PassReport, context: Context
) -> Settings:
    """Return how to quantize, once the target is known to execute it."""
    symmetric = rules.symmetric if options.symmetric is None else options.symmetric
    uniform = options.method in WEIGHT_QUANTIZERS
    try:
        rules.check(options.method, uniform, options.bits, options.group, symmetric)
    except UsageError as error:
        (line,) = options.layers or ("",)
        raise UsageError(error.what, where=line or error.where, fix=error.fix) from None
    if options.skip_worse and 8 not in rules.bits:
        raise UsageError("the target has no 8-bit weights", fix="leave weight_only.skip_worse at 0")
    if options.embeddings and "Table" not in rules.forms:
        raise UsageError(
            "the target has no tables in few bits", fix="leave weight_only.embeddings off"
        )
    method = options.method
    if context.data is None and method in ON_DATA:
        _warn(report, f"{method} needs data: did {WITHOUT_DATA} instead; pass --data")
        method = WITHOUT_DATA  # type: ignore[assignment]
    spec = Spec(
        f"{'int' if symmetric else 'uint'}{options.bits}",
        symmetric,
        axis=0 if options.group else 1,
        block=options.group,
    )
    search = RangeSearch(
        shares=(1.0,) if options.clip == "none" else SHARES,
        norm=2.4 if options.clip == "gptq" else 2.0,
        signed=symmetric and rules.negative_scales,
    )
    gptq = GPTQOptions(
        damping=options.damping,
        order=options.order,
        search=search,
        sweeps=int(symmetric) if options.sweeps is None else options.sweeps,
        refit=options.refit,
    )
    scaling = options.scaling and uniform and context.data is not None
    return Settings(
        method,
        spec,
        scaling,
        gptq,
        options.bits,
        options.threshold,
        float_zero="FloatZero" in rules.forms and not symmetric,
    )


def _unsuited(
    options: "WeightOnly",
    layers: Sequence[Layer],
    settings: Settings,
    context: Context,
    report: PassReport,
) -> dict[str, str]:
    """Return why some layers stay in float, by name."""
    refused: dict[str, str] = {}
    if not settings.uniform:
        experts = [layer.name for layer in layers if len(layer.shape) == 3]
        reason = f"{settings.method} takes no stack of experts' weights"
        refused.update(dict.fromkeys(experts, reason))
    if options.batch is not None:
        precision = (f"int{options.bits}", options.group)
        slow, warnings = slower(layers, *precision, options.batch, context.target)
        refused.update(slow)
        _warn(report, *warnings)
    return refused


def _warn(report: PassReport, *lines: str) -> None:
    """Warn once, whatever the number of layers."""
    report.warnings += [line for line in lines if line not in report.warnings]
