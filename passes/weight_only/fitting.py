"""Which layers a target does not take in few bits, or takes only in shorter groups."""

from collections.abc import Iterable

from qgraph.costs import load_costs, pays
from qgraph.passes.weight_only.layers import Layer
from qgraph.target import Target, WeightOnlyRules


def whole_blocks(
    layers: Iterable[Layer], group: int, rules: WeightOnlyRules
) -> tuple[dict[int, int], dict[str, str]]:
    """Find layers that do not divide into groups where the target wants whole ones.

    Returns:
        By number of rows, the shorter groups that they do divide into; and of layers for which
        there are none the reason, by name.
    """
    blocks: dict[int, int] = {}
    broken: dict[str, str] = {}
    for layer in layers:
        block = rules.block_for(layer.size, group)
        if block is None:
            broken[layer.name] = (
                f"its {layer.size} rows do not divide into whole groups of {group}, "
                "as the target wants them"
            )
        elif block != group:
            blocks[layer.size] = block
    return blocks, broken


def slower(
    layers: Iterable[Layer], kernel: str, group: int, batch: int, target: Target | None
) -> tuple[dict[str, str], list[str]]:
    """Find layers that few bits make slower, by the target's measured times.

    Args:
        layers: The layers.
        kernel: Type of their weights.
        group: Group length.
        batch: Rows multiplied at a time.
        target: The target.

    Returns:
        The reason of each, by name; and a warning where nothing was measured.
    """
    if target is None or not target.costs:
        name = "without a target" if target is None else f"for target {target.name}"
        return {}, [f"no times were measured {name}: batch={batch} decides nothing"]
    table, against = load_costs(target.costs), target.float_type or "fp32"
    found = {}
    for layer in layers:
        if len(layer.shape) != 2:
            continue
        verdict = pays(table, *layer.shape, batch, kernel, group, against=against)
        if verdict is not None and not verdict.pays:
            found[layer.name] = (
                f"{kernel} would take {verdict.ratio:.2f} times as long as {against} "
                f"at batch {batch} ({verdict.source})"
            )
    return found, []
