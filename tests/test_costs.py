"""Tables of measured times: what is read at, between and beyond their points."""

import json

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgraph import costs
from qgraph.costs import FOLDER, PAYS, load_costs, pays
from qgraph.costs.table import CostTable, Row
from qgraph.errors import UsageError
from qgraph.target import targets


def row(kernel, block, depth, width, us, rows=(1, 16)):
    return Row(kernel=kernel, block=block, depth=depth, width=width, rows=rows, us=us)


TABLE = CostTable(
    device="a GPU",
    engine="",
    date="",
    command="",
    products=(
        row("fp16", 0, 1024, 1024, (10, 10)),
        row("int4", 128, 1024, 1024, (5, 20)),
        row("int4", 32, 1024, 1024, (8, 40)),
        row("fp16", 0, 4096, 4096, (100, 100)),
        row("int4", 128, 4096, 4096, (25, 100)),
        row("int8", 128, 4096, 4096, (90, 90, 300), rows=(1, 4, 16)),
    ),
)


def ratio(*args, **kwargs):
    return pays(TABLE, *args, **kwargs).ratio


@pytest.mark.parametrize(
    ("shape", "m", "kernel", "block", "expected"),
    [
        ((1024, 1024), 1, "int4", 128, 0.5),
        ((1024, 1024), 16, "int4", 128, 2.0),
        ((4096, 4096), 1, "int4", 128, 0.25),
        ((4096, 4096), 16, "int8", 128, 3.0),
        # The nearest block length in logarithms; whole columns are the longest blocks.
        ((1024, 1024), 1, "int4", 16, 0.8),
        ((1024, 1024), 1, "int4", 64, 0.5),
        ((1024, 1024), 1, "int4", 0, 0.5),
    ],
)
def test_measured_points_are_read_as_they_are(shape, m, kernel, block, expected):
    verdict = pays(TABLE, *shape, m, kernel, block)
    assert verdict.ratio == pytest.approx(expected, rel=1e-4)
    assert verdict.pays == (expected <= PAYS)
    assert verdict.source == "measured on a GPU"


def test_between_points_logarithms_are_interpolated():
    # M = 4 is halfway from 1 to 16; the shape is halfway from 1024 to 4096.
    assert ratio(1024, 1024, 4, "int4", 128) == pytest.approx(1.0, rel=1e-4)
    assert ratio(2048, 2048, 1, "int4", 128) == pytest.approx((0.5 * 0.25) ** 0.5)
    assert pays(TABLE, 2048, 2048, 1, "int4", 128).source == "measured on a GPU"
    # The nearer shape counts more.
    assert 0.25 < ratio(4096, 3000, 1, "int4", 128) < 0.3
    # Each kernel is interpolated between its own points.
    assert ratio(4096, 4096, 2, "int8", 128) == pytest.approx(0.9, rel=1e-4)


@pytest.mark.parametrize(
    ("args", "nearest"),
    [
        ((1024, 1024, 64, "int4", 128), "16 x 1024 x 1024"),
        ((8192, 8192, 1, "int4", 128), "1 x 4096 x 4096"),
        ((64, 1024, 16, "int4", 128), "16 x 1024 x 1024"),
    ],
)
def test_beyond_the_points_the_nearest_counts_and_it_is_said(args, nearest):
    verdict = pays(TABLE, *args)
    assert verdict.source == f"guessed from {nearest} measured on a GPU"
    assert 0.25 <= verdict.ratio <= 2.0


def test_what_was_not_measured_is_not_judged():
    assert pays(TABLE, 1024, 1024, 1, "int2", 128) is None
    assert pays(TABLE, 1024, 1024, 1, "int4", 128, against="fp8") is None


@given(
    st.integers(1, 1 << 16), st.integers(1, 1 << 16), st.integers(1, 1 << 14), st.integers(0, 256)
)
def test_no_ratio_leaves_the_range_of_the_measured_ones(depth, width, m, block):
    assert 0.25 * 0.999 <= ratio(depth, width, m, "int4", block) <= 4.0 * 1.001


@pytest.mark.parametrize(
    "changed",
    [
        {"us": (1.0,)},
        {"rows": (16, 1)},
        {"rows": (1, 1)},
        {"us": (0.0, 1.0)},
        {"us": (float("inf"), 1.0)},
        {"depth": 0},
        {"column": 3},
    ],
)
def test_damaged_rows_are_refused(changed):
    good = {"kernel": "int4", "block": 32, "depth": 8, "width": 8, "rows": (1, 2), "us": (1.0, 2.0)}
    assert Row(**good)
    with pytest.raises(pydantic.ValidationError):
        Row(**(good | changed))


def test_every_target_with_costs_has_its_table():
    named = {each.costs for each in targets().values() if each.costs}
    assert named
    for name in named:
        table = load_costs(name)
        for kernel in ("int4", "int8"):
            assert pays(table, 4096, 4096, 1, kernel, 128) is not None


@pytest.mark.parametrize(
    ("shape", "m", "kernel", "block", "expected"),
    [
        ((4096, 4096), 1, "int4", 128, True),
        ((4096, 4096), 4, "int4", 32, True),
        ((4096, 4096), 64, "int4", 128, False),
        ((4096, 14336), 8, "int4", 128, False),
        ((4096, 14336), 4, "int4", 128, True),
        ((4096, 14336), 16, "int4", 128, False),
        ((4096, 14336), 1, "int8", 128, True),
        ((4096, 14336), 4, "int8", 128, False),
        ((576, 576), 1, "int4", 128, False),
    ],
)
def test_what_the_h100_says(shape, m, kernel, block, expected):
    verdict = pays(load_costs("h100"), *shape, m, kernel, block)
    assert verdict.pays == expected
    assert verdict.source == "measured on NVIDIA H100 80GB HBM3"


def test_unknown_and_damaged_tables(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="unknown table of costs 'h10'; did you mean 'h100'"):
        load_costs("h10")
    broken = json.loads((FOLDER / "h100.json").read_text())
    broken["products"][0]["us"] = [1]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    monkeypatch.setattr(costs, "FOLDER", tmp_path)
    with pytest.raises(
        UsageError, match=r"broken.json: products.0: .*one time for each; reinstall"
    ):
        load_costs("broken")
