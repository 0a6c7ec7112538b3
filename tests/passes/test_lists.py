"""Every registered pass: its documentation, options, name and test file."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest

from qgraph.passes import PASSES, all_passes
from qgraph.passes.cleanup import CLEANUP
from qgraph.passes.contrib import CONTRIB
from qgraph.passes.fusions import FUSIONS
from qgraph.passes.rewrites import REWRITES
from qgraph.pipeline import Fusion, Pass
from qgraph.registry import load

TESTS = Path(__file__).resolve().parent
REFERENCES = [*CLEANUP, *FUSIONS, *REWRITES, *CONTRIB, *PASSES]
# As DESIGN.md lists them for a fusion: something that is rewritten.
SECTIONS = ("Before", "After", "When", "Leaves alone", "Numerics", "Source")

each_pass = pytest.mark.parametrize("reference", REFERENCES)


def test_every_pass_is_found_under_its_name() -> None:
    names = [load(reference).name for reference in REFERENCES]
    assert len(names) == len(set(names)), "two passes have one name"
    assert set(all_passes()) == set(names)


@each_pass
def test_is_a_frozen_dataclass(reference: str) -> None:
    kind = load(reference)
    assert issubclass(kind, Pass) and "__dataclass_params__" in vars(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", kind.name)


@each_pass
def test_options_are_json_and_rebuild_the_pass(reference: str) -> None:
    kind = load(reference)
    default = kind()
    options = json.loads(json.dumps(default.options()))
    assert set(options) == {field.name for field in dataclasses.fields(kind)}
    assert kind.with_options(options) == default


@each_pass
def test_has_a_docstring(reference: str) -> None:
    kind = load(reference)
    doc = vars(kind).get("__doc__")
    assert doc and not doc.startswith(f"{kind.__name__}("), "no docstring of its own"
    summary = inspect.cleandoc(doc).splitlines()[0]
    assert summary.endswith("."), f"the summary is not one line with a full stop: {summary!r}"
    options = [field.name for field in dataclasses.fields(kind)]
    missing = [name for name in options if not re.search(rf"^\s+{name}\b.*:", doc, re.MULTILINE)]
    assert not missing, f"options without a line under Attributes: {missing}"


@pytest.mark.parametrize("reference", [*FUSIONS, *REWRITES, *CONTRIB])
def test_fusions_have_every_section(reference: str) -> None:
    kind = load(reference)
    doc = inspect.cleandoc(kind.__doc__ or "")
    if not issubclass(kind, Fusion) and reference not in REWRITES:
        # A pass that only marks what it finds: nothing stands before and after it.
        assert re.search(r"^When:$", doc, re.MULTILINE) and re.search(
            r"^Source:$", doc, re.MULTILINE
        )
        return
    parts = re.split(r"^(\w[\w ]*):$", doc, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    order = [name for name in found if name in SECTIONS]
    assert order == list(SECTIONS)
    assert all(found[name].strip() for name in SECTIONS), "an empty section"
    assert "TODO" not in doc


@each_pass
def test_has_a_test_file(reference: str) -> None:
    module = reference.partition(":")[0].removeprefix("qgraph.passes.")
    folder, _, name = module.rpartition(".")
    assert (TESTS / folder / f"test_{name}.py").is_file(), (
        f"no tests/passes/{folder}/test_{name}.py"
    )
