import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgraph.encodings_json import (
    FORMAT,
    Given,
    check_file,
    dump,
    read_encodings,
    shortest,
    write_encodings,
)
from qgraph.errors import ArtifactError, DataError, QGraphError, UsageError
from qgraph.strict_json import read_json


def own(*tensors, **more):
    return {"format": FORMAT, "schema_version": 1, **more, "tensors": list(tensors)}


def tensor(name="x", **more):
    return {"name": name, "dtype": "uint8", "scale": 0.5, "zero_point": 3, **more}


# -- qgraph's own ----------------------------------------------------------------------------------


def test_own_format(tmp_path):
    full = own(tensor(range=[-1.5, 126], group=["x", "y"], reason="r"), graph="ab", target="cpu",
               repairs={"smooth": {"enabled": True}})  # fmt: skip
    (tmp_path / "e.json").write_text(json.dumps(full))
    for source in (full, tmp_path / "e.json", str(tmp_path / "e.json")):
        found = read_encodings(source)
        assert found.own and found.graph == "ab" and found.target == "cpu"
        assert found.repairs == {"smooth": {"enabled": True}}
        assert found.tensors == {"x": Given((-1.5, 126.0), 0.5, 3, "uint8")}
        assert read_encodings(found) is found
    assert read_encodings(own({"name": "x", "range": [0, 1]})).tensors == {"x": Given((0.0, 1.0))}
    assert read_encodings(own(tensor(scale=[0.25]))).tensors["x"].scale == 0.25


def test_the_encodings_of_an_artifact():
    entry = {"dtype": "uint8", "scale": 0.5, "zero_point": 3, "block": []}
    found = read_encodings({"activations": {"x": entry}, "weights": {"c:1": {}}})
    assert not found.own and found.tensors == {"x": Given(None, 0.5, 3, "uint8")}


@given(st.floats(2.0**-126, 2.0**127, width=32))
def test_scales_are_written_short_and_come_back_exactly(value):
    exact = np.float32(value)
    text = json.dumps(shortest(exact))
    assert np.float32(json.loads(text)) == exact
    assert len(text) <= len(repr(float(exact)))


def test_one_line_a_tensor(tmp_path):
    document = own(tensor("a"), tensor("b\u2028\x1b"), model={"name": "m"})
    text = dump(document)
    assert json.loads(text) == document
    assert sum('"name": ' in line and '"dtype"' in line for line in text.split("\n")) == 2
    assert text.isascii()
    assert json.loads(dump(own())) == own()


def test_only_encodings_files_are_replaced(tmp_path):
    place = tmp_path / "e.json"
    write_encodings(own(tensor()), place)
    write_encodings(own(tensor(scale=0.75)), place)
    assert json.loads(place.read_text())["tensors"][0]["scale"] == 0.75
    assert [p.name for p in tmp_path.iterdir()] == ["e.json"]
    for content in ("notes", "{}", '{"format": "other"}', "[1]", '{"format": NaN}'):
        place.write_text(content)
        with pytest.raises(ArtifactError, match="is no encodings file"):
            write_encodings(own(tensor()), place)
        assert place.read_text() == content
    place.write_text("")  # what mktemp makes
    write_encodings(own(tensor()), place)
    with pytest.raises(ArtifactError, match="is a folder"):
        check_file(tmp_path)
    with pytest.raises(ArtifactError, match="no such folder"):
        check_file(tmp_path / "none" / "e.json")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    place = tmp_path / "e.json"
    write_encodings(own(tensor()), place)
    before = place.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qgraph.encodings_json.os.replace", full)
    with pytest.raises(ArtifactError, match="No space left"):
        write_encodings(own(tensor(scale=0.75)), place)
    assert place.read_text() == before and len(list(tmp_path.iterdir())) == 1


# -- what nobody vouches for -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is no JSON"),
        ('{"format": ', "line 1, column 12"),
        ("[]", "holds a list, not an object"),
        ("3", "holds a int"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"x": [0, NaN]}', "holds NaN"),
        ('{"x": [0, Infinity]}', "holds Infinity"),
        ('{"x": [0, 1e999]}', "not a finite number"),
        ('{"x": [0, 1' + "0" * 400 + "]}", "not a finite number"),
        ('{"x": [0, 1' + "0" * 5000 + "]}", "too many digits"),
        ('{"x": [0, 1], "x": [0, 2]}', "has the key 'x' twice"),
        ('{"x": [0, true]}', "not a finite number"),
        ('{"x": [2, 1]}', "low above high"),
        ('{"x": [1]}', "no encoding in a known form"),
        ('{"x": {"CLS": "other", "lowest": 1}}', "no encoding in a known form"),
        ("{}", "holds no encodings"),
        ('{"activation_encodings": {}, "version": "2.0.0"}', "encoding version 2.0.0"),
        (json.dumps(own(schema_version=2)), "schema version 2"),
        (json.dumps({"format": FORMAT, "schema_version": 1}), "no list of tensors"),
        (json.dumps(own({"dtype": "int8"})), "tensor 0 has no name"),
        (json.dumps(own(3)), "tensor 0 has no name"),
        (json.dumps(own(tensor(), tensor())), "tensor 'x': stands there twice"),
        (json.dumps(own(tensor(dtype="float"))), "dtype is 'float'"),
        (json.dumps(own(tensor(dtype=["int8"]))), "dtype is ['int8']"),
        (json.dumps(own({"name": "x", "dtype": "int8"})), "neither scale nor range"),
        (json.dumps(own({"name": "x", "scale": 1.0})), "no dtype"),
        (json.dumps(own(tensor(scale=0))), "scale is 0.0, not a positive"),
        (json.dumps(own(tensor(scale=-0.1))), "scale is -0.1, not a positive"),
        (json.dumps(own(tensor(scale=1e-60))), "scale is 1e-60, not a positive"),
        (json.dumps(own(tensor(scale=1e60))), "scale is 1e+60, not a positive"),
        (json.dumps(own(tensor(scale="1"))), "scale is '1', not a finite number"),
        (json.dumps(own(tensor(scale=[1, 2]))), "scale has 2 values, activations take one"),
        (json.dumps(own(tensor(zero_point=1.5))), "zero_point is 1.5, not a whole number"),
        (json.dumps(own(tensor(range=[0]))), "range is no pair"),
    ],
)
def test_bad_files_are_one_line_that_names_the_file(text, what, tmp_path):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DataError) as caught:
        read_encodings(tmp_path / "bad.json")
    line = str(caught.value)
    assert what in line and "bad.json" in line and "\n" not in line and len(line) < 400


def test_files_that_cant_be_read(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="No such file"):
        read_encodings(tmp_path / "none.json")
    with pytest.raises(DataError, match="directory"):
        read_encodings(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(DataError, match="no UTF-8"):
        read_encodings(tmp_path / "latin.json")
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"x": [0, 1]}).encode())
    assert read_encodings(tmp_path / "bom.json").tensors == {"x": Given((0.0, 1.0))}
    monkeypatch.setitem(read_json.__kwdefaults__, "limit", 100)
    (tmp_path / "large.json").write_text(" " * 101)
    with pytest.raises(DataError, match="is larger than 100 bytes"):
        read_encodings(tmp_path / "large.json")
    with pytest.raises(UsageError, match="can't be a int"):
        read_encodings(3)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["name", "scale", "offset", "min", "max", "lowest", "highest", "range", "x",
                         "dtype", "bw", "CLS", "data", "zero_point", "is_sym"]), inner, max_size=6),
    max_leaves=12,
)  # fmt: skip
HEADS = st.sampled_from(
    [
        lambda v: own(v),
        lambda v: own(tensor(), v),
        lambda v: {"format": FORMAT, "schema_version": v, "tensors": v},
        lambda v: {"version": "1.0.0", "activation_encodings": v, "param_encodings": v},
        lambda v: {"version": "0.6.1", "activation_encodings": {"x": v}, "param_encodings": {}},
        lambda v: {"activations": v, "weights": {}},
        lambda v: {"x": v, "y": [0, 1]},
        lambda v: {"CLS": "TensorsData", "data": v},
    ]
)


@given(HEADS, JSON)
def test_whatever_stands_there_is_read_or_refused(head, value):
    try:
        found = read_encodings(head(value))
    except QGraphError as error:
        assert "\n" not in str(error)
        return
    for each in found.tensors.values():
        assert each.range is not None or each.scale is not None
        assert each.scale is None or (each.scale > 0 and math.isfinite(each.scale))
        assert each.range is None or (-math.inf < each.range[0] <= each.range[1] < math.inf)


# -- AIMET -------------------------------------------------------------------------------------------

ENTRY_061 = {"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "max": 2.0, "min": -1.0,
             "offset": -85, "scale": 3 / 255}  # fmt: skip
ENTRY_100 = {"bw": 8, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": False,
             "offset": [-85], "scale": [3 / 255]}  # fmt: skip


def test_aimet_versions_say_the_same():
    old = read_encodings(
        {
            "version": "0.6.1",
            "activation_encodings": {"x": [ENTRY_061]},
            "param_encodings": {"w": [ENTRY_061], "v": [ENTRY_061]},
        }
    )
    new = read_encodings(
        {
            "version": "1.0.0",
            "activation_encodings": [{"name": "x", **ENTRY_100}],
            "param_encodings": [],
        }
    )
    assert old.format == "AIMET 0.6.1" and new.format == "AIMET 1.0.0" and not new.own
    assert old.tensors["x"] == Given((-1.0, 2.0), 3 / 255, 85, None, 8, False)
    assert new.tensors["x"] == Given(None, 3 / 255, 85, None, 8, False)
    assert [name for name, _ in old.skipped] == ["2 weights"] and not new.skipped


def test_aimet_what_has_no_place_is_skipped_with_a_reason():
    entries = [
        {"name": "f", "dtype": "FLOAT", "bw": 16, "enc_type": "PER_TENSOR"},
        {"name": "c", **ENTRY_100, "scale": [0.1, 0.2], "offset": [0, 0]},
        {"name": "x", **ENTRY_100},
    ]
    found = read_encodings({"version": "1.0.0", "activation_encodings": entries})
    assert dict(found.skipped) == {
        "f": "it is float16, no integer",
        "c": "it has 2 scales, activations take one",
    }
    assert list(found.tensors) == ["x"]
    old = {"x": [ENTRY_061, ENTRY_061]}
    assert read_encodings({"activation_encodings": old}).skipped[0][1].startswith("it has 2 scales")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"offset": -300}, "offset -300 is outside of 8 bits"),
        ({"offset": 3}, "offset 3 is outside of 8 bits"),
        ({"offset": 0.5}, "not a whole number"),
        ({"scale": -1}, "not a positive number"),
        ({"bitwidth": 99}, "bitwidth is 99"),
        ({"is_symmetric": "maybe"}, "is_symmetric is 'maybe'"),
        ({"is_symmetric": [1]}, "is_symmetric is [1]"),
        ({"min": 3}, "low above high"),
    ],
)
def test_aimet_impossible_values(change, what):
    with pytest.raises(DataError) as caught:
        read_encodings({"activation_encodings": {"x": [ENTRY_061 | change]}})
    assert what in str(caught.value) and "'x'" in str(caught.value)


# -- onnxruntime -------------------------------------------------------------------------------------


def test_tables_that_onnxruntime_writes(tmp_path):
    ort = pytest.importorskip("onnxruntime.quantization.calibrate", reason="needs onnxruntime")
    pytest.importorskip("flatbuffers", reason="onnxruntime writes tables with it")
    from onnxruntime.quantization.quant_utils import write_calibration_table

    data = ort.TensorsData(
        ort.CalibrationMethod.MinMax,
        {
            "x": (np.array(-1.5, np.float32), np.array(2.25, np.float32)),
            "y": (np.array([0.0], np.float32), np.array([6.0], np.float32)),
        },
    )
    want = {"x": Given((-1.5, 2.25)), "y": Given((0.0, 6.0))}
    write_calibration_table(data.data, str(tmp_path))
    assert read_encodings(tmp_path / "calibration.json").tensors == want
    ort.save_tensors_data(data, tmp_path / "saved.json")
    assert read_encodings(tmp_path / "saved.json").tensors == want
    plain = {"x": [-1.5, 2.25], "y": [0, 6]}
    assert read_encodings(plain).tensors == want
    assert read_encodings(plain).format == "onnxruntime"
