import subprocess
import sys

import numpy as np
import onnx
import pytest
from harness import model

import qgraph
from qgraph import onnx_io
from qgraph.context import Context
from qgraph.data import open_data
from qgraph.encoding import Spec
from qgraph.errors import DataError
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.calibration_state import restore, state_of
from qgraph.passes.observers import build, observer, observers
from qgraph.passes.observers.auto import Statistics
from qgraph.passes.plan import PlanQuantization
from qgraph.pipeline import Pipeline
from qgraph.target import target

METHODS = [*sorted(observers()), "auto"]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QGRAPH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def network(seed=0):
    rng = np.random.default_rng(seed)
    return model(
        """net (float[n, 3, 6, 6] image) => (float[n, 4, 6, 6] y) {
          c = Conv<pads = [1, 1, 1, 1]>(image, w)
          r = Relu(c)
          c2 = Conv<pads = [1, 1, 1, 1]>(r, w2)
          y = Sigmoid(c2)
        }""",
        {
            "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
            "w2": rng.standard_normal((4, 4, 3, 3)).astype(np.float32),
        },
    )


def images(count=12, seed=1):
    return np.random.default_rng(seed).standard_normal((count, 3, 6, 6)).astype(np.float32)


class Counted:
    """Counts the samples that the engine is given."""

    def __init__(self, monkeypatch):
        from qgraph.runtime.ort_session import OrtSession

        self.runs = 0
        plain = OrtSession.run

        def run(session, *args, **options):
            self.runs += 1
            return plain(session, *args, **options)

        monkeypatch.setattr(OrtSession, "run", run)


def calibrate(data, proto=None, said=None, **options):
    graph = onnx_io.load(proto or network())
    opened = open_data(data, graph.signature()) if not hasattr(data, "split") else data
    context = Context(target=target("cpu"), data=opened)
    if said is not None:
        context.info = said.append
    stages = Pipeline([PlanQuantization(), Calibrate(**options)]).run(graph, context)
    assert graph.facts.ranges
    return graph.facts.ranges, stages[-1].report


# -- the cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_second_run_takes_the_ranges_from_the_cache(name, monkeypatch):
    counted = Counted(monkeypatch)
    first, report = calibrate({"image": images()}, observer=name)
    assert counted.runs >= 12 and not report.notes
    counted.runs, said = 0, []
    again, report = calibrate({"image": images()}, observer=name, said=said)
    assert again == first and counted.runs == 0
    assert report.notes == ["ranges of 2 values come from the cache"] or len(first) != 2
    assert "from the cache in " in said[0]
    if name == "auto":  # what was chosen is reported again
        assert any("r: " in line for line in report.details)


def test_whatever_a_range_depends_on_changes_the_key(monkeypatch, tmp_path):
    counted = Counted(monkeypatch)
    np.savez(tmp_path / "a.npz", image=images())
    calibrate(tmp_path / "a.npz", observer="percentile")

    def runs(data, **options):
        counted.runs = 0
        calibrate(data, **options)
        return counted.runs

    other = images()
    other[5, 1, 2, 3] = np.nextafter(other[5, 1, 2, 3], np.float32(9))
    np.savez(tmp_path / "b.npz", image=other)
    assert runs(tmp_path / "a.npz", observer="percentile") == 0
    assert runs(tmp_path / "b.npz", observer="percentile") > 0
    assert runs(tmp_path / "a.npz", observer="mse") > 0
    assert runs(tmp_path / "a.npz", observer="percentile", percentile=99.0) > 0
    assert runs(tmp_path / "a.npz", observer="percentile", bins=512) > 0
    assert runs(tmp_path / "a.npz", observer="percentile", proto=network(seed=2)) > 0
    # What belongs to other observers, or to how it runs, doesn't matter.
    assert runs(tmp_path / "a.npz", observer="percentile", norm=3.0, rate=0.5) == 0
    assert runs(tmp_path / "a.npz", observer="percentile", checkpoint_s=0) == 0
    # Names of nodes don't either; the file may lie elsewhere.
    renamed = network()
    for node in renamed.graph.node:
        node.name = f"other_{node.output[0]}"
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    assert runs(tmp_path / "a.npz", observer="percentile", proto=renamed) == 0
    # One of several samples less, or the other side of a split.
    graph = onnx_io.load(network())
    left, right = open_data(tmp_path / "a.npz", graph.signature()).split(6)
    assert runs(left, observer="percentile") > 0
    assert runs(right, observer="percentile") > 0
    assert runs(left, observer="percentile") == 0


def test_cache_off(monkeypatch, cache_folder):
    counted = Counted(monkeypatch)
    for _ in range(2):
        counted.runs = 0
        calibrate({"image": images()}, cache=False, checkpoint_s=0)
        assert counted.runs >= 12
    assert not cache_folder.exists()
    monkeypatch.setenv("QGRAPH_CACHE", "off")
    for _ in range(2):
        counted.runs = 0
        calibrate({"image": images()}, checkpoint_s=0)
        assert counted.runs >= 12
    assert not cache_folder.exists()


def test_functions_and_generators_are_not_cached_and_say_so(monkeypatch):
    counted = Counted(monkeypatch)

    def function():
        yield from ({"image": each} for each in images())

    for data in (function, function(), function()):
        counted.runs, said = 0, []
        calibrate(data, said=said)
        assert counted.runs >= 12
        assert len(said) == 1 and "not cached" in said[0]
    said = []
    calibrate([{"image": each} for each in images()], said=said)
    assert not said  # a list is in memory: it is hashed


def test_damaged_results_are_computed_again(monkeypatch, cache_folder):
    first, _ = calibrate({"image": images()})
    (entry,) = cache_folder.glob("calibration-*.npz")
    entry.write_bytes(entry.read_bytes()[:-30])
    counted = Counted(monkeypatch)
    assert calibrate({"image": images()})[0] == first and counted.runs >= 12
    counted.runs = 0
    assert calibrate({"image": images()})[0] == first and counted.runs == 0


def test_an_unwritable_cache_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QGRAPH_CACHE", str(tmp_path / "file"))
    said = []
    assert calibrate({"image": images()}, said=said, checkpoint_s=0)[0]
    assert any("not cached in" in line for line in said)


# -- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(observers()))
def test_a_saved_and_restored_observer_is_the_same_observer(name):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(3000).astype(np.float32) * 10.0**k for k in (-3, 0, 2, -1, 1)]
    options = {"spec": Spec("int8"), "percentile": 99.0, "rate": 0.3, "bins": 1024}
    through, before = (build(observer(name), options) for _ in range(2))
    for array in arrays:
        through.observe(array)
    for array in arrays[:3]:
        before.observe(array)
    after = build(observer(name), options)
    restore(after, state_of(before))
    for array in arrays[3:]:
        after.observe(array)
    assert after.range() == through.range()
    left, right = state_of(after), state_of(through)
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[key], right[key]) for key in left)


def test_states_that_dont_fit_are_refused():
    whole = state_of(Statistics(Spec("uint8", symmetric=False)))
    for name in whole:
        with pytest.raises(ValueError, match=r"missing|form|number|damaged"):
            restore(Statistics(Spec()), {k: v for k, v in whole.items() if k != name})
    other = state_of(Statistics(Spec(), bins=512))
    grown = {k: v + 10**9 if k.endswith("@places") and v.size else v for k, v in whole.items()}
    filled = Statistics(Spec())
    filled.observe(np.ones(3))
    grown = {k: v + 10**9 if k.endswith("@places") else v for k, v in state_of(filled).items()}
    with pytest.raises(ValueError, match="damaged"):
        restore(Statistics(Spec()), grown)
    assert other.keys() == whole.keys()


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stop", [1, 7])
def test_an_interrupted_run_goes_on(name, stop):
    want, _ = calibrate({"image": images()}, observer=name, cache=False)
    fail = True

    def function():
        for index, each in enumerate(images()):
            if fail and index == stop:
                raise BrokenError
            yield {"image": each}

    with pytest.raises(DataError, match="BrokenError"):
        calibrate(function, observer=name, checkpoint_s=0)
    fail, said = False, []
    found, report = calibrate(function, observer=name, checkpoint_s=0, said=said)
    assert found == want
    assert f"calibration goes on behind sample {stop} of an interrupted run" in said
    assert any(f"{stop} more samples" in line for line in report.details)
    said.clear()
    calibrate(function, observer=name, said=said)
    assert not any("goes on" in line for line in said)  # the checkpoint is gone


def test_other_samples_start_anew():
    arrays, fail = images(), True

    def function():
        for index, each in enumerate(arrays):
            if fail and index == 8:
                raise BrokenError
            yield {"image": each}

    for name in ("percentile", "auto"):
        arrays, fail = images(), True
        with pytest.raises(DataError, match="BrokenError"):
            calibrate(function, observer=name, checkpoint_s=0)
        fail, said, arrays = False, [], images(seed=99)
        found, _ = calibrate(function, observer=name, checkpoint_s=0, said=said)
        assert not any("goes on" in line for line in said)
        assert found == calibrate({"image": arrays}, observer=name, cache=False)[0]


def test_values_split_into_groups_go_on_too():
    rng = np.random.default_rng(0)
    big = rng.standard_normal((5, 3, 200, 200)).astype(np.float32)
    want, _ = calibrate({"image": big}, observer="mse", cache=False, proto=open_shape())
    fail = True

    def function():
        for index, each in enumerate(big):
            if fail and index == 3:
                raise BrokenError
            yield {"image": each}

    with pytest.raises(DataError, match="BrokenError"):
        calibrate(function, observer="mse", checkpoint_s=0, memory_mb=1, proto=open_shape())
    fail, said = False, []
    found, report = calibrate(function, observer="mse", checkpoint_s=0, memory_mb=1, said=said,
                              proto=open_shape())  # fmt: skip
    assert any("goes on behind sample 3" in line for line in said)
    assert any("groups" in line for line in report.details)
    assert found == want


def open_shape():
    proto = network()
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis > 1:
                dim.dim_param = f"d{axis}"
    return proto


FEED = """
import os
import numpy as np

def samples():
    for index, each in enumerate(np.load("images.npy")):
        if os.path.exists("kill") and index == 15:
            os.kill(os.getpid(), 9)
        yield {"image": each}
"""


@pytest.mark.parametrize("name", ["mse", "moving-average"])
def test_a_killed_process_goes_on_and_finds_the_same_bits(
    name, tmp_path, cache_folder, monkeypatch
):
    onnx.save(network(), tmp_path / "net.onnx")
    np.save(tmp_path / "images.npy", images(24))
    (tmp_path / "feed.py").write_text(FEED)
    settings = [f"calibrate.observer={name}", "calibrate.checkpoint_s=0"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def run(*more):
        monkeypatch.delitem(sys.modules, "feed", raising=False)
        return qgraph.calibrate("net.onnx", data="feed:samples", settings=[*settings, *more])

    whole = run("calibrate.cache=false").document
    assert not cache_folder.exists()
    (tmp_path / "kill").touch()
    options = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "qgraph", "calibrate", "net.onnx", "--data", "feed:samples"]
    killed = subprocess.run([*command, *options], timeout=120, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "net.encodings.json").exists()
    (checkpoint,) = cache_folder.glob("checkpoint-*.npz")
    (tmp_path / "kill").unlink()
    resumed = run()
    done = [d for stage in resumed.stages for d in stage.report.details if "interrupted run" in d]
    # One sample in five is held out.
    assert done == ["12 more samples were done by an interrupted run"]
    assert resumed.document == whole
    assert not checkpoint.exists()
