"""Recipes load, extend each other, and answer every mistake with one line."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qgraph.errors import UsageError
from qgraph.recipe import Recipe, list_recipes, load_recipe, with_settings
from qgraph.target import WEIGHT_ONLY


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def refused(path: Path | str, *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line


def test_every_shipped_recipe_loads_and_says_what_it_is() -> None:
    recipes = list_recipes()
    assert [r.name for r in recipes] == [
        "awq",
        "awq+gptq",
        "best",
        "default",
        "fast",
        "gptq",
        "hqq",
        "imagenet-half",
        "imagenet-mean",
        "llm-int8",
        "nf4",
        "rtn",
        "squeeze",
    ]
    files = {f.name for f in resources.files("qgraph.recipes").iterdir()}
    assert {f"{r.name}.toml" for r in recipes} <= files
    for recipe in recipes:
        weights = "weight_only" in recipe.passes and recipe.name != "best"
        assert recipe.precision in (WEIGHT_ONLY if weights else ("int8",)) and recipe.description
        assert recipe == load_recipe(recipe.name)
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert load_recipe("default").passes["calibrate"] == {"observer": "auto"}
    assert load_recipe("fast").passes["calibrate"] == {"observer": "minmax"}


def test_a_file_may_extend_names_and_files_and_tables_merge(tmp_path: Path) -> None:
    write(tmp_path, "samples = 7\n[verify]\nmin_cosine = 0.9\n", "base.toml")
    recipe = load_recipe(
        write(
            tmp_path,
            'extends = ["imagenet-mean", "base.toml"]\nexclude = ["/head/*", "Softmax"]\n'
            "[images]\ncrop = [200, 100]\n[passes.calibrate]\nbins = 3\n",
        )
    )
    assert recipe.name == "mine" and recipe.description == "" and recipe.samples == 7
    assert recipe.exclude == ("/head/*", "Softmax")
    assert recipe.images is not None
    assert recipe.images.crop == (200, 100) and recipe.images.resize == 256
    assert recipe.images.mean == (0.485, 0.456, 0.406)
    assert recipe.verify.min_cosine == 0.9 and recipe.verify.sqnr_floor("int8") == 10.0
    merged = {**load_recipe("default").passes, "calibrate": {"observer": "auto", "bins": 3}}
    assert recipe.passes == merged


def test_a_floor_for_every_precision_or_by_precision(tmp_path: Path) -> None:
    floors = load_recipe("default").verify
    found = {
        name: floors.sqnr_floor(name) for name in ("fp16", "int8", "int8-weights", "int4", "int2")
    }
    assert found == {"fp16": 10, "int8": 10, "int8-weights": 10, "int4": 3, "int2": 3}
    one = load_recipe(write(tmp_path, 'extends = "default"\nverify.min_sqnr_db = 20'))
    assert one.verify.sqnr_floor("int8") == one.verify.sqnr_floor("int4") == 20
    some = load_recipe(write(tmp_path, 'extends = "rtn"\nverify.min_sqnr_db.int4 = 12.5'))
    assert some.verify.sqnr_floor("int4") == 12.5 and some.verify.sqnr_floor("int3") == 3
    named = load_recipe(write(tmp_path, "verify.min_sqnr_db.int4 = 5"))
    assert named.verify.sqnr_floor("int8") is None
    assert load_recipe(write(tmp_path, "")).verify.sqnr_floor("int8") is None


def test_later_parents_win_and_an_empty_file_is_the_plain_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, 'extends = ["imagenet-half", "fast"]')
    recipe = load_recipe(str(path))
    assert recipe.passes["calibrate"]["observer"] == "minmax" and recipe.images is not None
    assert load_recipe(write(tmp_path, "")) == Recipe(name="mine")


def test_names_are_suggested() -> None:
    refused("defualt", "unknown recipe 'defualt'; did you mean 'default'?")
    refused("zzz", "choose one of: awq, awq+gptq, best, default, fast")


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    refused(tmp_path / "none.toml", "none.toml: there is no such file", "default, fast")
    (tmp_path / "folder.toml").mkdir()
    refused(tmp_path / "folder.toml", "folder.toml: can't be read")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path / "bytes.toml", "bytes.toml: is not UTF-8 text")
    (tmp_path / "big.toml").write_bytes(b"#" * (2 << 20))
    refused(tmp_path / "big.toml", "big.toml: is too large")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000)
    refused(tmp_path / "deep.toml", "deep.toml")


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = [", 1), ("samples = 1\nb == 2\n", 2), ("\n\n[images\n", 3), ('\nname = "x', 2)],
)
def test_syntax_errors_name_the_line(text: str, line: int, tmp_path: Path) -> None:
    refused(write(tmp_path, text), f"mine.toml:{line}: is not valid TOML")


MISTAKES = [
    ("sampels = 3", "mine.toml: unknown key 'sampels'; did you mean 'samples'?"),
    ("[images]\nmaen = [1]", "unknown key 'images.maen'; did you mean 'mean'?"),
    ("[verify]\nzzzzz = 1", "unknown key 'verify.zzzzz'; use one of: held_out, min_cosine"),
    ('samples = "3"', "mine.toml: samples: input should be a valid integer, got '3'"),
    ("samples = true", "samples: input should be a valid integer, got True"),
    ("samples = 0", "samples: input should be greater than or equal to 1, got 0"),
    (
        'precision = "int9"',
        "precision: input should be 'fp32', 'fp16', 'bf16', 'fp8', 'int8', 'int8-dynamic', 'w8a16', 'int8-weights', 'int4', 'int3' or",
    ),
    ("verify.held_out = 1.5", "verify.held_out: expected a fraction between 0 and 1, or a number"),
    ("verify.held_out = 0", "verify.held_out: expected a fraction"),
    ("verify.min_sqnr_db = nan", "verify.min_sqnr_db: expected a finite number, or a table of"),
    ("verify.min_sqnr_db.int9 = 3", "verify.min_sqnr_db: expected a finite number, or a table of"),
    ("verify.min_sqnr_db.int4 = inf", "verify.min_sqnr_db: expected a finite number, or a table"),
    ("verify.min_cosine = 2", "verify.min_cosine: input should be less than or equal to 1, got 2"),
    ("verify = 3", "verify: input should be a table, got 3"),
    ("passes.calibrate = 3", "passes.calibrate: input should be a table, got 3"),
    ("images.resize = [1, 2, 3]", "images.resize: expected the shorter side or [height, width]"),
    ("images.crop = 0", "images.crop: expected the side of a square or [height, width]"),
    ("images.mean = [1, 2]", "images: mean needs 1 or 3 values for channels 'RGB'"),
    ("images.std = [0]", "images.std.0: input should be greater than 0, got 0"),
    ('images.layout = "HWC"', "images.layout: input should be 'NCHW' or 'NHWC', got 'HWC'"),
    ('exclude = "a"', "exclude: input should be a list, got 'a'"),
    ('exclude = ["a", 3]', "exclude.1: input should be a valid string, got 3"),
    ("passes.a.b = 1979-05-27", "holds a date or time"),
    ("extends = 3", "mine.toml: extends: expected the name of a recipe"),
    (
        'extends = "defualt"',
        "mine.toml: extends: unknown recipe 'defualt'; did you mean 'default'?",
    ),
    ('extends = "gone.toml"', "gone.toml: there is no such file"),
    ('extends = "mine.toml"', "mine.toml: extends itself"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_name_the_key_and_what_was_expected(
    text: str, message: str, tmp_path: Path
) -> None:
    refused(write(tmp_path, text), message)


def test_recipes_that_extend_each_other_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "b.toml"', "a.toml")
    refused(write(tmp_path, 'extends = "./a.toml"', "b.toml"), "extends itself")


def test_settings_override_options_and_leave_the_recipe_alone() -> None:
    recipe = load_recipe("default")
    changed = with_settings(
        recipe,
        ["calibrate.observer=minmax", "a.b = 3", "a.c=1.5", "a.d=true", 'a.e="x y"', "a.f=[1, 2]"],
    )
    assert changed.passes == {
        **recipe.passes,
        "calibrate": {"observer": "minmax"},
        "a": {"b": 3, "c": 1.5, "d": True, "e": "x y", "f": [1, 2]},
    }
    assert recipe == load_recipe("default")
    assert with_settings(recipe, ["a.b=1", "a.b=2"]).passes["a"] == {"b": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=b", "a=b"),
        ("", ""),
        ("mean-minmax", "mean-minmax"),
        ("2024-01-01", "2024-01-01"),
        ("1\nother = 2", "1\nother = 2"),
        ("{x = 1}", "{x = 1}"),
        ("[2024-01-01]", "[2024-01-01]"),
        ("1e-3", 1e-3),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_values_that_are_no_toml_stay_strings(text: str, value: Any) -> None:
    assert with_settings(Recipe(), [f"p.o={text}"]).passes == {"p": {"o": value}}


@given(st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.booleans()))
def test_scalars_come_back_as_toml_reads_them(value: float) -> None:
    text = str(value).lower()
    got = with_settings(Recipe(), [f"p.o={text}"]).passes["p"]["o"]
    assert got == tomllib.loads(f"v = {text}")["v"] == value and type(got) is type(value)


@pytest.mark.parametrize(
    "text", ["calibrate.observer", "observer=minmax", "a.b.c=1", ".b=1", "a.=1", "=", ""]
)
def test_settings_that_name_no_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"write pass\.option=value"):
        with_settings(Recipe(), [text])


def test_recipes_can_not_be_changed_in_place() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.samples = 3
    with pytest.raises(ValidationError, match="extra"):
        Recipe(colour="red")  # type: ignore[call-arg]
