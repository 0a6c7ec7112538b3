import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_models import affine

from qgraph.errors import EngineError, UsageError
from qgraph.runtime import backend
from qgraph.runtime.backend import Session
from qgraph.runtime.bench import bench
from qgraph.runtime.choose import Candidate, fastest, relative_to_fastest
from qgraph.runtime.session import SessionBase

CPU = backend("onnxruntime-cpu")
FEEDS = {"x": np.ones((4, 3), np.float32), "w": np.ones(3, np.float32)}


class Sleeper(SessionBase):
    """A session of known latency, to check the arithmetic of the clock."""

    def __init__(self, name: str, seconds: float, log: list[str] | None = None) -> None:
        super().__init__(name, (), ())
        self.seconds, self.log, self.closed = seconds, log, False

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        assert not self.closed
        if self.log is not None:
            self.log.append(self.engine)
        time.sleep(self.seconds)
        return {}

    def _release(self) -> None:
        self.closed = True


def test_known_latencies_come_out() -> None:
    slow, quick = Sleeper("slow", 0.008), Sleeper("quick", 0.002)
    assert isinstance(slow, Session)
    first, second = bench({"a": slow, "b": quick}, FEEDS, seconds=0.4, warmup_s=0.0, rest_s=0.0)
    assert (first.name, first.engine, second.name) == ("a", "slow", "b")
    assert 8 <= first.p50_ms < 12 and 2 <= second.p50_ms < 4
    assert first.relative_time == 1.0 and 0.2 < second.relative_time < 0.4
    assert second.relative_low <= second.relative_time <= second.relative_high
    assert first.p10_ms <= first.p50_ms <= first.p90_ms <= first.p99_ms
    assert first.batch == 4 and first.items_per_s == pytest.approx(4000 / first.p50_ms)
    assert second.runs > first.runs
    assert json.loads(json.dumps(first.as_json()))["peak_memory_bytes"] is None


def test_blocks_alternate_and_the_order_turns() -> None:
    log: list[str] = []
    sessions = {name: Sleeper(name, 0.01, log) for name in "abc"}
    results = bench(sessions, FEEDS, runs=3, warmup_s=0.0, rest_s=0.0)
    assert [result.runs for result in results] == [3, 3, 3]
    blocks = [name for name, before in zip(log, ["", *log], strict=False) if name != before]
    assert "".join(blocks) == "abc" + "abc" + "bca" + "cab"


def test_every_block_but_a_lone_session_s_rests_and_warms_up() -> None:
    log: list[str] = []
    pair = {name: Sleeper(name, 0.0, log) for name in "ab"}
    start = time.perf_counter()
    bench(pair, FEEDS, runs=2, warmup_s=0.0, rest_s=0.05)
    assert time.perf_counter() - start >= 4 * (0.05 + 0.06)
    assert len(log) > 2 * (1 + 2 * (1 + 1))
    alone: list[str] = []
    bench({"a": Sleeper("a", 0.0, alone)}, FEEDS, runs=20, warmup_s=0.0, rest_s=9.0)
    assert len(alone) == 1 + 20


def test_opened_here_is_closed_here_and_nothing_else() -> None:
    made: list[Sleeper] = []

    def make() -> Sleeper:
        made.append(Sleeper("made", 0.0))
        return made[-1]

    given = Sleeper("given", 0.0)
    bench({"a": make, "b": given}, FEEDS, runs=1, warmup_s=0.0)
    assert made[0].closed and not given.closed and len(made) == 1


def test_scalar_feeds_are_one_item() -> None:
    (result,) = bench({"a": Sleeper("a", 0.0)}, {"x": np.float32(1)}, runs=2, warmup_s=0)
    assert result.batch == 1


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"runs": 0}, {"warmup_s": -1}, {"rest_s": -1}])
def test_wrong_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="positive"):
        bench({"a": Sleeper("a", 0.0)}, FEEDS, **wrong)
    with pytest.raises(UsageError, match="no session"):
        bench({}, FEEDS)


def test_relative_to_fastest_sorts_and_rescales() -> None:
    results = bench(
        {"a": Sleeper("a", 0.004), "b": Sleeper("b", 0.001)}, FEEDS, runs=8, warmup_s=0, rest_s=0
    )
    quick, slow = relative_to_fastest(results)
    assert (quick.name, quick.relative_time) == ("b", 1.0)
    assert slow.relative_time == pytest.approx(1 / results[1].relative_time)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(affine().SerializeToString())
    return path


def test_fastest_keeps_those_that_can_not_run_with_the_reason(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    candidates = [
        Candidate("openvino", model),
        Candidate("onnxruntime-cpu", tmp_path / "bad.onnx", label="damaged"),
        Candidate("onnxruntime-cpu", model),
        Candidate("onnxruntime-cpu", tmp_path / "none.onnx", label="absent"),
    ]
    measured = fastest(candidates, FEEDS, budget_s=0.4)
    assert len(measured) == 4
    by_label = {str(item.candidate): item for item in measured}
    best = by_label["onnxruntime-cpu"]
    assert best.result is not None and best.reason == ""
    assert "refuses the model" in by_label["damaged"].reason
    assert "no such file" in by_label["absent"].reason
    if reason := backend("openvino").unavailable():
        assert by_label["openvino"].reason == reason
        assert measured[0] is best and best.result.relative_time == 1.0
    results = [item.result for item in measured if item.result]
    assert measured[: len(results)] == [item for item in measured if item.result]
    assert results == sorted(results, key=lambda result: result.relative_time)
    assert json.dumps([item.as_json() for item in measured], allow_nan=False)


def test_candidates_that_fail_on_the_feeds_are_kept(model: Path) -> None:
    (only,) = fastest([Candidate("onnxruntime-cpu", model)], {"x": FEEDS["x"]}, budget_s=0.1)
    assert only.result is None and "input 'w': missing" in only.reason


def test_fastest_refuses_nonsense(model: Path) -> None:
    twice = [Candidate("onnxruntime-cpu", model)] * 2
    with pytest.raises(UsageError, match="two candidates are called 'onnxruntime-cpu'"):
        fastest(twice, FEEDS)
    with pytest.raises(UsageError, match="budget_s is 0"):
        fastest(twice[:1], FEEDS, 0)
    (unknown,) = fastest([Candidate("onnxruntime-gpu", model)], FEEDS, 0.1)
    assert "unknown backend" in unknown.reason


def test_errors_while_timing_come_through() -> None:
    session = CPU.open(affine().SerializeToString())
    session.close()
    with pytest.raises(EngineError, match="closed"):
        bench({"a": session}, FEEDS)
