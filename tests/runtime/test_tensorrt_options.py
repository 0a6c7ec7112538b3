"""What a build takes: shapes, options, and how a recipe and --set spell them."""

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgraph.errors import EngineError, UsageError
from qgraph.job import resolve
from qgraph.recipe import Recipe, load_recipe, with_settings
from qgraph.runtime.tensorrt.configure import capabilities, configure
from qgraph.runtime.tensorrt.library import MODULES, Library, load_library
from qgraph.runtime.tensorrt.options import TensorRtOptions, parse_profiles, spell

needs_builder = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in MODULES),
    reason="neither tensorrt_rtx nor tensorrt is installed (tensorrt-rtx-cu13 on PyPI)",
)


def test_three_shapes_are_least_usual_greatest_and_one_is_all_of_them():
    (found,) = parse_profiles(["x:1x3,8x3,32x3; mask:5"])
    assert found == {"x": ((1, 3), (8, 3), (32, 3)), "mask": ((5,), (5,), (5,))}


def test_an_input_named_again_begins_another_profile():
    assert parse_profiles(["x:1", "y:2", "x:3", "y:4"]) == [
        {"x": ((1,),) * 3, "y": ((2,),) * 3},
        {"x": ((3,),) * 3, "y": ((4,),) * 3},
    ]


def test_names_may_hold_colons_and_shapes_may_be_scalar():
    assert parse_profiles(["input:0:1x2"]) == [{"input:0": ((1, 2),) * 3}]
    assert parse_profiles(["n:scalar"]) == [{"n": ((), (), ())}]


@pytest.mark.parametrize(
    "line", ["", "x", ":1x2", "x:", "x:1x", "x:1,2", "x:2,1,3", "x:1,2x2,3", "x:-1", "x:1x2;;y:3"]
)
def test_what_is_no_shape_is_refused(line):
    with pytest.raises(ValueError, match="shapes"):
        parse_profiles([line])


lengths = st.lists(st.integers(0, 5000), max_size=5)


@given(lengths, st.data())
def test_every_range_is_read_as_it_is_spelled(least, data):
    grown = st.tuples(*(st.integers(0, 99) for _ in least))
    usual = tuple(map(sum, zip(least, data.draw(grown), strict=True)))
    greatest = tuple(map(sum, zip(usual, data.draw(grown), strict=True)))
    line = f"x:{','.join(map(spell, (least, usual, greatest)))}"
    assert parse_profiles([line]) == [{"x": (tuple(least), usual, greatest)}]


def test_settings_reach_the_table_of_the_engine_and_later_ones_win():
    recipe = with_settings(
        Recipe(), ["tensorrt.opt_level=2", 'tensorrt.sm=["8.6"]', "tensorrt.opt_level=5", "a.b=1"]
    )
    assert recipe.tensorrt == TensorRtOptions(opt_level=5, sm=("8.6",))
    assert recipe.passes == {"a": {"b": 1}}
    again = with_settings(recipe, ["tensorrt.tf32=true"]).tensorrt
    assert again == TensorRtOptions(opt_level=5, sm=("8.6",), tf32=True)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("tensorrt.opt_level=6", "opt_level: input should be less than or equal to 5"),
        ("tensorrt.level=3", "unknown key 'level'"),
        ("tensorrt.sm=['86']", "sm"),
        ("tensorrt.shapes=['x']", "can't read shapes 'x'"),
        ("tensorrt.workspace_mb=0", "workspace_mb"),
    ],
)
def test_wrong_settings_are_refused_on_one_line(setting, says):
    with pytest.raises(UsageError) as caught:
        with_settings(Recipe(), [setting])
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_file_has_the_table(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text("[tensorrt]\nopt_level = 1\nsm = ['12.0']\n")
    assert load_recipe(file).tensorrt == TensorRtOptions(opt_level=1, sm=("12.0",))
    file.write_text("[tensorrt]\nopt = 1\n")
    with pytest.raises(UsageError, match="unknown key 'tensorrt.opt'"):
        load_recipe(file)


def test_settings_for_an_engine_that_the_target_does_not_build_are_refused():
    with pytest.raises(UsageError, match="target 'cpu' has no tensorrt engine"):
        resolve("cpu", None, None, (), ["tensorrt.opt_level=1"], None)
    job = resolve("gpu-nvidia:8.9", None, None, (), ["tensorrt.opt_level=1"], None)
    assert job.recipe.tensorrt == TensorRtOptions(opt_level=1) and job.target.variant == "8.9"


@needs_builder
def test_the_targets_capability_counts_where_the_library_has_it_and_none_is_named():
    library = load_library()
    known = library.capabilities
    assert capabilities(library, TensorRtOptions(), "9.0") == ()
    assert capabilities(library, TensorRtOptions(sm=("8.6", "8.6")), "8.9") == ("8.6",)
    if known:
        assert capabilities(library, TensorRtOptions(), known[0]) == known[:1]


@needs_builder
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is there")
@pytest.mark.parametrize(
    ("chosen", "says"),
    [("9.0", r"TensorRT-RTX .* does not build for compute capability 9\.0; choose among 7\.5")],
)
def test_a_capability_that_the_library_lacks(chosen, says):
    library = load_library()
    config = library.module.Builder(library.logger()).create_builder_config()
    with pytest.raises(EngineError, match=says):
        configure(library, config, TensorRtOptions(), (chosen,))


class Older:
    """A library without what newer ones have: names are looked up, never assumed."""

    __version__ = "10.0"

    class BuilderFlag:
        TF32 = 0

    class ProfilingVerbosity:
        DETAILED = 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight_streaming": True}, r"tensorrt\.weight_streaming: .* has no WEIGHT_STREAMING"),
        ({"hardware": "any-ampere"}, r"tensorrt\.hardware: .* has no AMPERE_PLUS"),
    ],
)
def test_an_option_that_the_installed_library_lacks_is_refused(options, says):
    class Config:
        def clear_flag(self, flag):
            pass

    with pytest.raises(EngineError, match=says):
        configure(Library(Older, "TensorRT", ()), Config(), TensorRtOptions(**options), ())


def test_compute_capabilities_are_for_the_library_that_chooses_them():
    with pytest.raises(EngineError, match="builds for the GPU in the machine only"):
        Library(Older, "TensorRT", ()).capability("8.6")
