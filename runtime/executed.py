"""What an engine really ran: kernels, their types and times, read from ONNX Runtime's profile."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from qgraph.errors import EngineError
from qgraph.runtime.backend import Backend, EngineOptions, ExecutedOp
from qgraph.runtime.tensors import Array

_SUFFIX = "_kernel_time"


def executed_ops(
    model: Path | bytes,
    feeds: Mapping[str, Array],
    backend: Backend,
    options: EngineOptions | None = None,
    *,
    runs: int = 3,
) -> tuple[ExecutedOp, ...]:
    """Run a model under its engine's profiler and list the kernels that ran.

    On ONNX Runtime's CPU provider every kernel is visible, after fusion, with its types and time.
    With OpenVINO it is not: the profile shows one kernel for each subgraph that the plugin
    compiled, with its time, and the list then names the model's nodes that were handed over,
    without times. Which of them OpenVINO fused, and in which precision it ran them, only its own
    runtime shows (tests/runtime/test_openvino_profile.py asks it); nodes that it refused appear
    under 'CPUExecutionProvider'.

    Args:
        model: Path or serialized model.
        feeds: Arrays by input name.
        backend: Engine to ask.
        options: Its options; `profile` is switched on.
        runs: Runs to take the median time of.

    Raises:
        EngineError: The engine refuses the model, fails, or leaves no readable profile.
    """
    with backend.open(model, replace(options or EngineOptions(), profile=True)) as session:
        return session.profile(feeds, runs)


def read_profile(path: Path) -> tuple[ExecutedOp, ...]:
    """Read ONNX Runtime's profile: one entry a kernel, in order of first execution.

    A kernel in a Loop or Scan body runs many times in one run; its time is the median of one call
    times the calls in one run.

    Raises:
        EngineError: The file is missing or not a profile.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"the profile can't be read ({error})", fix="check the free space for temporary files"
        ) from error
    runs = max(1, sum(event.get("name") == "model_run" for event in events))
    calls: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for event in events:
        name, args = event.get("name", ""), event.get("args", {})
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            key = (args.get("node_index", ""), name, args.get("op_name", ""))
            calls.setdefault(key, []).append(event)
    return tuple(_kernel(found, runs) for found in calls.values())


def _kernel(calls: list[dict[str, Any]], runs: int) -> ExecutedOp:
    first = calls[0]
    args = first["args"]
    return ExecutedOp(
        name=first["name"].removesuffix(_SUFFIX),
        op_type=args.get("op_name", ""),
        provider=args.get("provider", ""),
        input_dtypes=_dtypes(args.get("input_type_shape", [])),
        output_dtypes=_dtypes(args.get("output_type_shape", [])),
        time_us=median(call["dur"] for call in calls) * len(calls) / runs,
    )


def _dtypes(entries: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(_type_name(key) for entry in entries for key in entry)


def _type_name(text: str) -> str:
    """'float' and 'double', as C++ names them, become 'float32' and 'float64'."""
    return {"float": "float32", "double": "float64"}.get(text, re.sub(r"\W", "", text))
