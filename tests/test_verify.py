"""The comparison of an artifact with the original: what is judged, and what it holds in memory."""

import weakref

import numpy as np
import onnx
from harness import model

import qgraph
from qgraph.runtime.reference import open_reference
from qgraph.runtime.wrapped import Wrapped
from qgraph.verify import verify

TEXT = """g (float[1,8] x, float[1,2,p,4] past) => (float[1,8] y, float[1,2,q,4] present) {{
    y = Neg(x)  flat = Reshape(x, shape)  twice = Expand(flat, heads)
    new = {change}(twice{more})  present = Concat<axis=2>(past, new)
}}"""


def written(folder, name, change="Identity", more=""):
    arrays = {
        "shape": np.int64([1, 1, 2, 4]),
        "heads": np.int64([1, 2, 1, 1]),
        "factor": np.float32(2),
        "weight": np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32),
    }
    onnx.save(model(TEXT.format(change=change, more=more), arrays), folder / name)
    return folder / name


def samples(count=5):
    rng = np.random.default_rng(0)
    past = np.zeros((1, 2, 0, 4), np.float32)
    return [
        {"x": rng.standard_normal((1, 8)).astype(np.float32), "past": past} for _ in range(count)
    ]


def compared(original, candidate, state, feeds):
    with open_reference(candidate) as session:
        return verify(
            original,
            session,
            feeds,
            kind="held out",
            state=state,
            min_sqnr_db=10,
            min_cosine=None,
            progress=lambda *_: None,
        )


def test_floors_are_for_answers_and_not_for_caches(tmp_path):
    original = written(tmp_path, "a.onnx")
    worse = written(tmp_path, "b.onnx", "Mul", ", factor")
    found = compared(original, worse, {"present"}, samples())
    assert found.passed and found.state == ["present"] and found.samples == 5
    assert [(out["name"], out["sqnr_db"]) for out in found.outputs] == [
        ("y", "inf"),
        ("present", 0.0),
    ]
    judged = compared(original, worse, (), samples())
    assert not judged.passed and judged.state == []
    assert judged.failures == ["output 'present': SQNR 0.0 dB is below 10 dB"]


def test_numbers_that_are_finite_in_one_of_the_two_only_fail_in_caches_too(tmp_path):
    original = written(tmp_path, "a.onnx")
    broken = written(tmp_path, "b.onnx", "Sqrt")
    found = compared(original, broken, {"present"}, samples())
    assert not found.passed and "NaN or infinite in one of the two only" in found.failures[0]


class Watched(Wrapped):
    """Notes how many results of former runs, its own and others', are still there at each run."""

    def __init__(self, session, results, alive):
        super().__init__(session)
        self.results, self.alive = results, alive

    def run(self, feeds, outputs=None):
        self.alive.append(sum(result() is not None for result in self.results))
        found = super().run(feeds, outputs)
        self.results.extend(weakref.ref(array) for array in found.values())
        return found


def test_one_sample_is_held_at_a_time(tmp_path, monkeypatch):
    original, results, alive = written(tmp_path, "a.onnx"), [], []

    def watched(path):
        return Watched(open_reference(path), results, alive)

    monkeypatch.setattr("qgraph.verify.open_reference", watched)
    with watched(original) as session:
        found = verify(
            original,
            session,
            samples(6),
            kind="held out",
            state=(),
            min_sqnr_db=None,
            min_cosine=None,
            progress=lambda *_: None,
        )
    assert found.samples == 6
    # The artifact runs while the original's two outputs of the same sample wait.
    assert alive == [0, 2] * 6


def test_a_compile_tells_caches_from_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("qgraph.engine_choice.BUDGET_S", 0.1)
    original = written(tmp_path, "a.onnx", "MatMul", ", weight")
    recipe = tmp_path / "strict.toml"
    recipe.write_text('extends = "rtn"\n[verify]\nmin_sqnr_db = 60\n')
    artifact = qgraph.compile(
        original,
        output=tmp_path / "out",
        data={"x": np.concatenate([sample["x"] for sample in samples(8)])},
        recipe=recipe,
        settings=["weight_only.min_elements=1", "weight_only.group=16", "weight_only.head=true"],
    )
    accuracy = artifact.manifest.accuracy
    assert artifact.manifest.nodes["int4"] == 1
    assert accuracy.passed and accuracy.state == ["present"] and accuracy.samples == 4
    assert accuracy.outputs[0]["sqnr_db"] == "inf" and accuracy.outputs[1]["sqnr_db"] < 60
