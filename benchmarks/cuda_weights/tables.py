"""What was measured, as Markdown and as a cost table."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qgraph.costs.table import CostTable, Row


def cost_json(table: CostTable) -> str:
    """Return a cost table as JSON, one product a line."""
    head = table.model_dump(mode="json")
    rows = ",\n    ".join(json.dumps(row) for row in head.pop("products"))
    text = json.dumps(head, indent=2).removesuffix("\n}")
    return f'{text},\n  "products": [\n    {rows}\n  ]\n}}\n'


def markdown(about: dict[str, str], report: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return all tables."""
    lines = [f"{about['device']}, onnxruntime {about['onnxruntime']}, {about['date']}"]
    lines += [f"- failed: {line}" for line in report.get("failures", [])]
    lines += _errors(report.get("errors", {}))
    lines += _products(rows)
    for name, steps in report.get("steps", {}).items():
        lines += _steps(name, steps)
    return "\n".join(lines) + "\n"


def crossing(batches: Sequence[float], ratios: Sequence[float]) -> float:
    """Return where a ratio first reaches 1, linear in logarithms; infinity where it doesn't."""
    if ratios[0] >= 1:
        return batches[0]
    logs = np.log2(ratios)
    for left in range(len(batches) - 1):
        if logs[left + 1] >= 0:
            share = -logs[left] / (logs[left + 1] - logs[left])
            low, high = math.log2(batches[left]), math.log2(batches[left + 1])
            return float(2 ** (low + share * (high - low)))
    return math.inf


def _errors(found: dict[str, float]) -> list[str]:
    if not found:
        return []
    lines = ["", "| kernel | largest error, of the largest product |", "|---|---|"]
    return lines + [f"| {name} | {error:.1e} |" for name, error in found.items()]


def _products(rows: Sequence[Row]) -> list[str]:
    """Return fp16's times, and those of other kernels relative to them."""
    floats = {(row.depth, row.width): row for row in rows if row.kernel == "fp16"}
    if not floats:
        return []
    counts = next(iter(floats.values())).rows
    head = ["K x N", "kernel", *(f"M={m}" for m in counts), "pays up to M"]
    lines = ["", "fp16: microseconds; others: time relative to fp16.", "", _row(head)]
    lines.append("|---" * len(head) + "|")
    for row in sorted(rows, key=lambda r: (r.depth * r.width, r.depth, r.kernel, r.block)):
        base = floats.get((row.depth, row.width))
        shape = f"{row.depth} x {row.width}"
        if base is row:
            lines.append(_row([shape, "fp16", *(f"{t:.1f}" for t in row.us), ""]))
        elif base is not None:
            ratios = [t / b for t, b in zip(row.us, base.us, strict=True)]
            cells = [f"{ratio:.2f}" for ratio in ratios]
            label = f"{row.kernel}, block {row.block}"
            lines.append(_row([shape, label, *cells, _until(row.rows, ratios)]))
    return lines


def _steps(name: str, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = []
    for key, how in (("graph_us", "with a CUDA graph"), ("plain_us", "kernel by kernel")):
        times = {v: {s["batch"]: s[key] for s in steps if key in s} for v, steps in found.items()}
        base = times.get("fp16", {})
        if not base:
            continue
        lines += ["", f"{name}, {how}: tokens a second, and time relative to fp16.", ""]
        lines.append(_row(["weights", *(f"batch {b}" for b in base), "pays up to batch"]))
        lines.append("|---" * (len(base) + 2) + "|")
        for variant, by_batch in times.items():
            common = [b for b in base if b in by_batch]
            ratios = [by_batch[b] / base[b] for b in common]
            cells = [
                f"{b * 1e6 / by_batch[b]:.0f}, {by_batch[b] / base[b]:.2f}" if b in by_batch else ""
                for b in base
            ]
            until = "" if variant == "fp16" or not common else _until(common, ratios)
            lines.append(_row([variant, *cells, until]))
    return lines


def _until(counts: Sequence[int], ratios: Sequence[float]) -> str:
    if ratios[0] >= 1:
        return "never"
    where = crossing(counts, ratios)
    return f"over {counts[-1]}" if math.isinf(where) else f"{where:.0f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
