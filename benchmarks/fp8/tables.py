"""What was measured, as Markdown."""

from collections.abc import Iterable
from typing import Any


def markdown(about: dict[str, str], report: dict[str, Any]) -> str:
    """Return all tables."""
    lines = [f"{about['device']}, onnxruntime {about['onnxruntime']}, {about['date']}"]
    lines += [f"- failed: {line}" for line in report.get("failures", [])]
    lines += [f"- left out for time: {line}" for line in report.get("left out", [])]
    if "graph" in report:
        lines.append(f"- fp8 products in a CUDA graph: {report['graph']}")
    lines += _kernels(report.get("kernels", {}))
    lines += _best(report.get("best", {}))
    lines += _encoder(report.get("encoder", []))
    lines += _profiles(report.get("encoder", []))
    lines += _products(report.get("products", []))
    lines += _decisions(report.get("decisions", {}))
    return "\n".join(lines) + "\n"


def _kernels(found: dict[str, float]) -> list[str]:
    if not found:
        return []
    lines = ["", *_head("kernel", "largest error, of the largest product")]
    return lines + [_row([name, f"{value:.2g}"]) for name, value in found.items()]


def _best(found: dict[str, dict[str, float]]) -> list[str]:
    if not found:
        return []
    lines = ["", "Encoder, the best of each: milliseconds.", ""]
    lines += _head("batch x length", "fp16", "fp8", "fp16 / fp8")
    return lines + [
        _row([tokens, _ms(each["fp16"]), _ms(each["fp8"]), f"{each['ratio']:.2f}"])
        for tokens, each in found.items()
    ]


def _encoder(found: list[dict[str, Any]]) -> list[str]:
    sizes = list(dict.fromkeys(size for each in found for size in each.get("plain_us", {})))
    if not sizes:
        return []
    lines = ["", "Encoder: milliseconds; error of the output against fp32.", ""]
    lines += _head("attention", "variant", "in fp8", "error", "how", *sizes)
    for each in found:
        for key, how in (("plain_us", "kernel by kernel"), ("graph_us", "CUDA graph")):
            if key in each:
                times = [_ms(each[key][size]) if size in each[key] else "" for size in sizes]
                label = [each["form"], each["variant"], str(each["fp8"]), f"{each['error']:.4f}"]
                lines.append(_row([*label, how, *times]))
    return lines


def _profiles(found: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for each in found:
        if each.get("profile"):
            total = sum(each["profile"].values())
            lines += ["", f"Profile of {each['form']}, {each['variant']}, first size.", ""]
            lines += _head("operator", "us", "share")
            lines += [
                _row([op, f"{us:.0f}", f"{us / total:.1%}"]) for op, us in each["profile"].items()
            ]
    return lines


def _products(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    titles = {
        "cast": "fp8, Cast in front",
        "quantize": "fp8, QuantizeLinear in front",
        "codes": "fp8, of codes",
    }
    lines = ["", "Products: fp16 in microseconds, others relative to it."]
    for each in found:
        base = each["us"].get("fp16")
        if not base:
            continue
        lines += [
            "",
            *_head(f"{each['depth']} x {each['width']}", *(f"M={m}" for m in each["rows"])),
        ]
        lines.append(_row(["fp16, us", *(f"{us:.1f}" for us in base)]))
        for way, times in each["us"].items():
            if way != "fp16":
                ratios = (f"{us / b:.2f}" for us, b in zip(times, base, strict=True))
                lines.append(_row([titles[way], *ratios]))
    return lines


def _decisions(found: dict[str, dict[str, float]]) -> list[str]:
    if not found:
        return []
    sizes = list(next(iter(found.values())))
    lines = ["", "What these times say of the encoder's products: fp8 relative to fp16.", ""]
    lines += _head("product", *sizes)
    return lines + [
        _row([name, *(f"{ratios[size]:.2f}" for size in sizes)]) for name, ratios in found.items()
    ]


def _ms(us: float) -> str:
    return f"{us / 1000:.2f}"


def _head(*cells: str) -> list[str]:
    return [_row(cells), "|---" * len(cells) + "|"]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
