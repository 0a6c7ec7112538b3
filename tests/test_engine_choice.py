"""How the engine is chosen where it has several ways to run, and memory of its own."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import model

from qgraph.commands.summary import render
from qgraph.engine_choice import select_engine
from qgraph.errors import EngineError
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.onnxruntime_cpu import OnnxRuntimeCpu
from qgraph.target import target

NET = "net (float[n,64] x) => (float[n,64] y) { a = Exp(x)  b = MatMul(a, w)  y = Exp(b) }"
WEIGHTS = {"w": np.eye(64, dtype=np.float32) * 0.1}
FEEDS = {"x": np.ones((2, 64), np.float32)}


class Ways(OnnxRuntimeCpu):
    """onnxruntime's CPU provider, which stands for one that computes elsewhere, in two ways."""

    name = "ways"
    provider = "CUDAExecutionProvider"

    def variants(
        self, precision: str, operators: Any = (), asked: Any = None
    ) -> Mapping[str, EngineOptions]:
        ways = {"": {}, "odd": {"odd": True}, "broken": {"broken": True}}
        return {label: EngineOptions(threads=1, engine=own) for label, own in ways.items()}

    def open(self, model: Any, options: EngineOptions | None = None) -> Any:
        chosen = options or EngineOptions()
        if chosen.engine.get("broken"):
            raise EngineError("no CUDA graph can be captured: nodes on the CPU", where=self.name)
        session = super().open(model, replace(chosen, engine={}))
        session.device = "cuda"
        return session


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("qgraph.engine_choice.backend", lambda name: Ways())
    monkeypatch.setattr("qgraph.runtime.choose.backend", lambda name: Ways())
    monkeypatch.setattr("qgraph.engine_choice.BUDGET_S", 0.2)
    return replace(target("cuda"), engines=("ways",))


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    found = tmp_path / "model.onnx", tmp_path / "float.onnx"
    for path in found:
        path.write_bytes(model(NET, WEIGHTS).SerializeToString())
    return found


def test_every_way_is_timed_and_the_fastest_is_opened(ways: Any, paths: tuple[Path, Path]) -> None:
    found = select_engine(ways, "fp16", *paths, FEEDS)
    engine = found.engine
    assert engine is not None and engine.backend == "ways"
    assert engine.candidate in ("ways fp16", "ways fp16, odd")
    assert engine.options["engine"] == ({"odd": True} if "odd" in engine.candidate else {})
    by_name = {each.candidate: each for each in found.timings}
    before = f"{engine.candidate.replace('fp16', 'fp32')} (before)"
    assert set(by_name) == {"ways fp16", "ways fp16, odd", "ways fp16, broken", before}
    assert by_name["ways fp16, broken"].reason.startswith("ways: no CUDA graph can be captured")
    for name, each in by_name.items():
        assert (each.through_host_p50_ms is None) == (name == "ways fp16, broken")
    best = by_name[engine.candidate]
    assert best.relative_time == 1.0 and found.slower_than_float is not None
    assert by_name[before].relative_time == pytest.approx(1 / found.slower_than_float)
    with found.open(paths[0]) as session:
        assert session.run(FEEDS)["y"].shape == (2, 64)


def test_nodes_of_other_providers_are_warned_of(ways: Any, paths: tuple[Path, Path]) -> None:
    [line] = select_engine(ways, "fp16", paths[0], None, FEEDS).warnings
    assert line.startswith("3 nodes did not run in CUDA: 2 Exp in CPU, 1 MatMul in CPU; they took")


def test_what_runs_in_no_way_says_why(ways: Any, paths: tuple[Path, Path]) -> None:
    with pytest.raises(EngineError, match=r"no engine runs .*ways fp16, broken: .*CUDA graph"):
        select_engine(ways, "fp16", *paths, {"x": np.ones((2, 3), np.float32)})


def test_the_summary_shows_both_times(ways: Any, paths: tuple[Path, Path]) -> None:
    from rich.console import Console

    found = select_engine(ways, "fp16", *paths, FEEDS)
    assert found.engine is not None
    manifest = {
        "source": {"name": "m"},
        "precision": "fp16",
        "target": "cuda",
        "nodes": {"fp16": 3},
        "accuracy": None,
        "engine": found.engine.model_dump(),
        "timings": [each.model_dump() for each in found.timings],
        "timed": "one sample",
        "not_timed": "",
        "original_bytes": 1,
        "artifact_bytes": 1,
        "stages": [],
    }
    console = Console(width=160, record=True, file=io.StringIO())
    for part in render(manifest, Path("out"), [], []):
        console.print(part)
    shown = console.export_text()
    assert "from and to host" in shown and "times as fast as fp32" in shown
    way = found.engine.candidate.removeprefix("ways fp16")
    assert f"in ways{way}, one sample" in shown
    assert "ways: no CUDA graph can be captured: nodes on the CPU" in shown
