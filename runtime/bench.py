"""Latency of several sessions, in turn in one run, so that their ratios hold.

Protocol: sessions stay open; blocks of runs alternate; a block begins with a rest of 100 ms and
60 ms of runs that do not count; the order within a round turns, so that drift hits all alike.

Measured for it, with MobileNetV2 in float32 on two cores: after its last run ONNX Runtime's thread
pool spins for 45 ms, so that the first two or three runs of the next session take 17 ms instead of
5.3, and alternating run by run doubles the latency of both. After 100 ms nothing is left of it, and
a session that is merely open does not disturb. With other work on the machine, the ratio of the
model to itself was wrong by 3.4% on average and 7.4% at most (7 repetitions of 0.8 s a session);
without the rest by 4.6% and 19%, without both by 9.0% and 46%. Switching the spinning off made runs
10 to 30% slower (4 repetitions), so sessions keep it.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qgraph.errors import UsageError
from qgraph.runtime.backend import Session
from qgraph.runtime.tensors import Array

REST_S = 0.1
ROUNDS = 8
_SETTLE_S = 0.06


@dataclass(frozen=True)
class BenchResult:
    """Latency of one session.

    Attributes:
        name: Name the session was given.
        engine: Its engine.
        runs: Runs that counted.
        batch: Items a run: the first axis of the first feed, 1 if that is a scalar.
        p50_ms: Median latency in milliseconds; likewise p90_ms and p99_ms. With less than 100
            runs p99_ms is close to the slowest one.
        p10_ms: What one run in ten stays below: the latency where other work disturbs little.
        items_per_s: Throughput at the median latency.
        relative_time: Median over rounds of this session's median latency in the round divided
            by the first session's: 0.5 takes half the time. Steadier than the ratio of p50_ms
            where the machine's speed drifts.
        relative_low: Lower quartile of that ratio over rounds; likewise relative_high the upper.
        peak_memory_bytes: From `qgraph.runtime.memory.peak_memory`, None where not asked for.
        device_memory_bytes: The same of the engine's device; None where it has none.
        on_device_ms: Median latency with inputs and outputs in the device's memory, where the engine
            has one; all other times are of numpy arrays, which are copied there and back.
    """

    name: str
    engine: str
    runs: int
    batch: int
    p10_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    items_per_s: float
    relative_time: float
    relative_low: float
    relative_high: float
    peak_memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    on_device_ms: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return asdict(self)


def bench(
    sessions: Mapping[str, Session | Callable[[], Session]],
    feeds: Mapping[str, Array],
    *,
    seconds: float = 3.0,
    warmup_s: float = 0.5,
    runs: int | None = None,
    rounds: int = ROUNDS,
    rest_s: float = REST_S,
) -> list[BenchResult]:
    """Time sessions in turn on the same feeds.

    Args:
        sessions: By name: open sessions, which stay open, or functions that open one, which is
            closed at the end. The first is what the others are compared with.
        feeds: Arrays by input name, the same for all.
        seconds: Time of counted runs for each session, spread over the rounds.
        warmup_s: Time of uncounted runs for each session at the beginning, at least one run.
        runs: Counted runs for each session instead of `seconds`; fewer than `rounds` make fewer rounds.
        rounds: How often the sessions take turns.
        rest_s: Rest before each block, for threads of other sessions to fall asleep.

    Returns:
        One result a session, in the order given.

    Raises:
        UsageError: There is no session, or a number is not positive.
        QGraphError: What opening or running a session raises.
    """
    if not sessions:
        raise UsageError("there is no session to time", fix="give at least one")
    if seconds <= 0 or rounds < 1 or warmup_s < 0 or rest_s < 0 or (runs is not None and runs < 1):
        raise UsageError("a bench time or number of runs is not positive", fix="give more")
    with ExitStack() as stack:
        opened = {name: _open(entry, stack) for name, entry in sessions.items()}
        for session in opened.values():
            _timed_for(session, feeds, warmup_s)
        sizes = _block_sizes(runs, rounds)
        blocks = _rounds(opened, feeds, sizes, seconds / rounds, rest_s)
        return _results(opened, blocks, _batch(feeds))


def _open(entry: Session | Callable[[], Session], stack: ExitStack) -> Session:
    return stack.enter_context(entry()) if callable(entry) else entry


def _block_sizes(runs: int | None, rounds: int) -> list[int | None]:
    """Runs a block for every round; None is as many as fit in the block's time."""
    if runs is None:
        return [None] * rounds
    count = min(rounds, runs)
    return [runs // count + (index < runs % count) for index in range(count)]


def _rounds(
    sessions: Mapping[str, Session],
    feeds: Mapping[str, Array],
    sizes: list[int | None],
    block_s: float,
    rest_s: float,
) -> dict[str, list[list[float]]]:
    """Latencies in seconds: by session, by round."""
    found: dict[str, list[list[float]]] = {name: [] for name in sessions}
    names = list(sessions)
    for index, size in enumerate(sizes):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            session = sessions[name]
            if len(names) > 1:
                time.sleep(rest_s)
                _timed_for(session, feeds, _SETTLE_S)
            block = _timed_for(session, feeds, block_s) if size is None else []
            block += [_timed(session, feeds) for _ in range(size or 0)]
            found[name].append(block)
    return found


def _timed_for(session: Session, feeds: Mapping[str, Array], seconds: float) -> list[float]:
    end = time.perf_counter() + seconds
    times = [_timed(session, feeds)]
    while time.perf_counter() < end:
        times.append(_timed(session, feeds))
    return times


def _timed(session: Session, feeds: Mapping[str, Array]) -> float:
    start = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - start


def _batch(feeds: Mapping[str, Array]) -> int:
    first = next(iter(feeds.values()), None)
    return int(first.shape[0]) if first is not None and np.ndim(first) else 1


def _results(
    sessions: Mapping[str, Session], rounds: Mapping[str, list[list[float]]], batch: int
) -> list[BenchResult]:
    medians = {name: np.array([np.median(b) for b in blocks]) for name, blocks in rounds.items()}
    base = next(iter(medians.values()))
    results = []
    for name, blocks in rounds.items():
        times = np.concatenate([np.asarray(block) for block in blocks])
        p10, p50, p90, p99 = (float(v) * 1e3 for v in np.percentile(times, (10, 50, 90, 99)))
        low, middle, high = (float(v) for v in np.percentile(medians[name] / base, (25, 50, 75)))
        results.append(
            BenchResult(
                name=name,
                engine=sessions[name].engine,
                runs=len(times),
                batch=batch,
                p10_ms=p10,
                p50_ms=p50,
                p90_ms=p90,
                p99_ms=p99,
                items_per_s=batch / p50 * 1e3,
                relative_time=middle,
                relative_low=low,
                relative_high=high,
            )
        )
    return results
