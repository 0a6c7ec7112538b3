"""What `qgraph compile` prints when it is done, from the artifact's manifest."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from qgraph import report, text
from qgraph.commands import promise

if TYPE_CHECKING:
    from qgraph.pipeline import Stage

_REASONS = 8
_OUTPUTS = 6
# Passes that decide which layers are quantized; no compile has both.
_CHOOSING = ("plan", "weight_only")
# Fused ones run in float inside the kernel of an integer one.
_NODES = {"float": "{count} left in float", "fused": "{count} fused"}


def render(
    manifest: Mapping[str, Any], folder: Path, warnings: Sequence[str], stages: "Sequence[Stage]"
) -> list[RenderableType]:
    """Return the summary: warnings first, where the artifact lies last.

    Args:
        manifest: The manifest as JSON has it.
        folder: The artifact.
        warnings: Those that the user has not seen yet.
        stages: Passes to list; none without `-v`.
    """
    shown: list[RenderableType] = [report.warning(line) for line in warnings]
    if stages:
        shown += _passes(stages)
    facts = [
        (
            "compiled",
            f"{manifest['source']['name']} to {manifest['precision']}, {manifest['target']}",
        ),
        ("nodes", _nodes(manifest["nodes"])),
        *_io(manifest.get("io")),
        *_accuracy(manifest["accuracy"]),
        *_latency(manifest),
        *promise.rows(manifest.get("promise")),
        ("size", _size(manifest["original_bytes"], manifest["artifact_bytes"])),
        ("artifact", str(folder)),
    ]
    shown += _float_reasons(manifest["stages"])
    if len(manifest["timings"]) > 1:
        shown += _timings(manifest["timings"], manifest["timed"])
    shown += [report.heading("Result"), report.facts(facts)]
    return shown


def _nodes(nodes: Mapping[str, int]) -> str:
    ordered = sorted(nodes.items(), key=lambda item: item[0] == "float")
    return ", ".join(
        _NODES.get(precision, "{count} in {precision}").format(count=count, precision=precision)
        for precision, count in ordered
    )


def _io(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Inputs and outputs that are not the original's."""
    rows = []
    for key, label in (("inputs", "takes"), ("outputs", "hands out")):
        for name, entry in (found or {}).get(key, {}).items():
            parts = [entry["kind"], entry["dtype"]]
            if entry["kind"] == "pixels":
                parts += [entry["layout"], entry["images"]["channels"]]
            else:
                scale = report.number(entry["scale"])
                parts.append(f"(code - {entry['zero_point']}) * {scale}")
            rows.append((label, f"{name}: {', '.join(parts)}"))
    return rows


def _float_reasons(stages: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Why what chooses the layers left some in float, most frequent reason first."""
    refused: dict[str, int] = next(
        (stage["refused"] for stage in stages if stage["name"] in _CHOOSING), {}
    )
    if not refused:
        return []
    lines = report.reasons(refused, _REASONS)
    return [report.heading("Left in float"), *(f"  {line}" for line in lines)]


def _accuracy(accuracy: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if accuracy is None:
        return [("accuracy", "not compared")]
    outputs = accuracy["outputs"]
    shown, rest = outputs[:_OUTPUTS], outputs[_OUTPUTS:]
    if rest:  # such as a decoder's caches: the first output is what users look at
        shown, rest = outputs[:1], outputs[1:]
    many = len(outputs) > 1
    rows = [
        (f"accuracy {output['name']}" if many else "accuracy", _agreement(output))
        for output in shown
    ]
    if rest:
        worst = min(rest, key=lambda output: _sqnr(output))
        what = f"worst in {worst['name']}: {_agreement(worst)}"
        rows.append((f"of {len(rest):,} others", what))
    compared = f"{text.counted(accuracy['samples'], 'sample')}, {accuracy['data']}"
    verdict = "" if accuracy["passed"] else f"; FAILED: {text.few(accuracy['failures'])}"
    return [*rows, ("compared on", f"{compared}, against the original unoptimised{verdict}")]


def _agreement(output: Mapping[str, Any]) -> str:
    parts = []
    if output.get("sqnr_db") is not None:
        parts.append(f"SQNR {_decibels(output['sqnr_db'])}")
    if output.get("cosine") is not None:
        parts.append(f"cosine {report.number(output['cosine'], 5)}")
    if output.get("max_relative") is not None:
        parts.append(f"largest error {report.number(output['max_relative'], 3)} of the range")
    if output.get("argmax_agreement") is not None:
        rows = output["argmax_rows"]
        parts.append(f"argmax agrees in {output['argmax_agreement']:.2%} of {rows}")
    if not parts:
        parts.append(f"{output['exact_share']:.2%} of the elements are equal")
    return ", ".join(parts)


def _sqnr(output: Mapping[str, Any]) -> float:
    """Return the SQNR in dB as a number; infinities come as text, and an exact output has none."""
    value = output.get("sqnr_db")
    return math.inf if value is None else float(value)


def _decibels(value: float | str) -> str:
    return f"{value} dB" if isinstance(value, str) else f"{value:.1f} dB"


def _latency(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    engine, timings = manifest["engine"], manifest["timings"]
    if engine is None:
        why = manifest["not_timed"]
        return [("latency", f"nothing was timed: {why}")] if why else []
    label = engine.get("candidate") or f"{engine['backend']} {manifest['precision']}"
    mine = next((t for t in timings if t["candidate"] == label), None)
    if mine is None or mine["p50_ms"] is None:
        return [("engine", engine["backend"])]
    line = (
        f"{report.milliseconds(mine['p50_ms'])} ms p50, {report.milliseconds(mine['p90_ms'])} ms "
        f"p90 in {engine['backend']}{label.partition(',')[1]}{label.partition(',')[2]}"
    )
    if manifest["timed"]:
        line += f", {manifest['timed']}"
    before = [t for t in timings if "(before)" in t["candidate"] and t["relative_time"]]
    if before:
        best = min(before, key=lambda t: t["relative_time"])
        factor = best["relative_time"] / mine["relative_time"]
        line += f"; {factor:.2f} times as fast as fp32"
    return [("latency", line)]


def _timings(timings: Sequence[Mapping[str, Any]], timed: str) -> list[RenderableType]:
    copied = any(t.get("through_host_p50_ms") for t in timings)
    rows = [
        (
            t["candidate"],
            report.milliseconds(t["p50_ms"]),
            report.milliseconds(t["p90_ms"]),
            "" if t["relative_time"] is None else f"{t['relative_time']:.2f}",
            *([_optional_ms(t["through_host_p50_ms"])] if copied else []),
        )
        for t in timings
        if not t["reason"]
    ]
    columns = ("engine", "p50 ms", "p90 ms", "relative", *(["from and to host"] * copied))
    made = report.table(columns, rows)
    for column in made.columns[1:]:
        column.justify = "right"
    # An engine that can't be used here says so for each model that it was asked to run.
    reasons = dict.fromkeys(t["reason"] for t in timings if t["reason"])
    return [report.heading(f"Latency of {timed or 'one sample'}, measured in turn"), made, *reasons]


def _optional_ms(value: float | None) -> str:
    return "" if value is None else report.milliseconds(value)


def _size(before: int, after: int) -> str:
    share = f" ({after / before:.0%})" if before else ""
    return f"{text.size(before)} -> {text.size(after)}{share}"


def _passes(stages: "Sequence[Stage]") -> list[RenderableType]:
    rows = []
    for stage in stages:
        counts: dict[str, int] = {}
        for refusal in stage.report.refused:
            counts[refusal.reason] = counts.get(refusal.reason, 0) + 1
        reasons = report.reasons(counts, 3)
        rows.append((stage.name, f"{stage.seconds * 1e3:.1f}", stage.report.changed, reasons))
    columns = ("pass", "ms", "rewrites", "refused, and why")
    return [report.heading("Passes"), report.table(columns, rows, right="ms rewrites")]
