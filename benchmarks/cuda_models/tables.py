"""What was measured, as Markdown, with what must hold."""

from collections.abc import Mapping
from typing import Any

# Ours against the fastest of the eight, plain fp16 against ours at batch 1, and errors.
WITHIN, TIMES, ERRORS = 1.03, 2.0, {"fp32": 1e-3, "fp16": 0.15}


def markdown(report: Mapping[str, Any]) -> str:
    """Return all tables."""
    lines = [f"{report['device']}, onnxruntime {report['onnxruntime']}, {report['date']}"]
    lines += [f"- failed: {line}" for line in report.get("failures", [])]
    lines += [f"- missed: {line}" for line in missed(report)]
    for name, found in report.get("models", {}).items():
        lines += _model(name, found)
    return "\n".join(lines) + "\n"


def best(found: Mapping[str, Any], batch: int) -> tuple[str, float] | None:
    """The fastest of plain onnxruntime's ways at a batch, and its time."""
    times = {
        f"{way}, {key}": cell[f"{key}_us"]
        for way, cells in found.get("plain", {}).items()
        for cell in cells
        if cell["batch"] == batch
        for key in ("kernels", "graph")
        if f"{key}_us" in cell
    }
    return min(times.items(), key=lambda item: item[1]) if times else None


def missed(report: Mapping[str, Any]) -> list[str]:
    """What does not hold, one line each."""
    lines = []
    for name, found in report.get("models", {}).items():
        for way, cells in found.get("plain", {}).items():
            for cell in cells:
                for key in ("kernels", "graph"):
                    if cell.get(f"{key}_error", 0) > ERRORS[way.split(",")[0]]:
                        lines.append(f"{name}, {way}, {key}, batch {cell['batch']}: wrong numbers")
        for cell in found.get("ours", []):
            lines += _missed_cell(name, found, cell)
        int8 = found.get("int8")
        timed = int8 and {"int8_us", "fp16_us"} <= int8.keys()
        if timed and not int8["same_file"] and int8["int8_us"] > int8["fp16_us"] * WITHIN:
            lines.append(f"{name}: int8 is slower than fp16")
    return lines


def _missed_cell(name: str, found: Mapping[str, Any], cell: Mapping[str, Any]) -> list[str]:
    batch, fastest = cell["batch"], best(found, cell["batch"])
    if "us" not in cell or fastest is None:
        return []
    lines, where = [], f"{name}, batch {batch}"
    if cell["us"] > fastest[1] * WITHIN:
        lines.append(f"{where}: {cell['us'] / fastest[1]:.3f} of the time of {fastest[0]}")
    plain = _plain_fp16(found, batch)
    if batch == 1 and plain and plain < TIMES * cell["us"]:
        lines.append(f"{where}: only {plain / cell['us']:.2f} times as fast as plain fp16")
    if max(cell["error"], cell["numpy_error"]) > ERRORS["fp16"]:
        lines.append(f"{where}: wrong numbers")
    return lines


def _plain_fp16(found: Mapping[str, Any], batch: int) -> float | None:
    cells = found.get("plain", {}).get("fp16, NCHW", [])
    return next((c["kernels_us"] for c in cells if c["batch"] == batch and "kernels_us" in c), None)


def _model(name: str, found: Mapping[str, Any]) -> list[str]:
    batches = sorted({c["batch"] for cells in found.get("plain", {}).values() for c in cells})
    lines = ["", f"**{name}**: milliseconds; device memory in MB; error", ""]
    lines += [_row(["how", *(f"batch {batch}" for batch in batches)])]
    lines += ["|---" * (len(batches) + 1) + "|"]
    for way, cells in found.get("plain", {}).items():
        by_batch = {cell["batch"]: cell for cell in cells}
        for key in ("kernels", "graph"):
            row = [_cell(by_batch.get(b, {}), f"{key}_") for b in batches]
            if any(row):
                lines.append(_row([f"{way}, {key}", *row]))
    ours = {cell["batch"]: cell for cell in found.get("ours", [])}
    lines.append(_row(["ours", *(_cell(ours.get(b, {}), "") for b in batches)]))
    lines.append(
        _row(["ours, from and to numpy", *(_ms(ours.get(b, {}), "numpy_us") for b in batches)])
    )
    lines.append(_row(["chosen", *(str(ours.get(b, {}).get("candidate", "")) for b in batches)]))
    lines.append(_row(["ours / best", *(_ratio(ours.get(b, {}), best(found, b)) for b in batches)]))
    against = [(ours.get(b, {}), _plain_fp16(found, b)) for b in batches]
    lines.append(
        _row(["ours / plain fp16", *(_ratio(c, ("", t) if t else None) for c, t in against)])
    )
    int8 = found.get("int8")
    if int8 and {"int8_us", "fp16_us"} <= int8.keys():
        what = "the same file as fp16" if int8["same_file"] else f"nodes {int8['nodes']}"
        ratio = int8["int8_us"] / int8["fp16_us"]
        lines += [
            "",
            f"int8 asked for: built {int8['precision']}, {what}; {ratio:.2f} of fp16's time",
        ]
    return lines


def _cell(cell: Mapping[str, Any], prefix: str) -> str:
    if f"{prefix}us" not in cell:
        return ""
    parts = [f"{cell[f'{prefix}us'] / 1e3:.3f}"]
    if f"{prefix}mb" in cell:
        parts.append(f"{cell[f'{prefix}mb']:.0f} MB")
    parts.append(f"{cell[f'{prefix}error']:.0e}")
    return "; ".join(parts)


def _ms(cell: Mapping[str, Any], key: str) -> str:
    return f"{cell[key] / 1e3:.3f}" if key in cell else ""


def _ratio(cell: Mapping[str, Any], other: tuple[str, float] | None) -> str:
    return f"{cell['us'] / other[1]:.3f}" if "us" in cell and other else ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
