"""What devices can do, as data: for estimates where there is none of them.

Each `NAME.toml` here is a `Device`; a target names its own in `Target.devices`.
"""

from importlib import resources
from pathlib import Path

from qgraph.errors import UsageError, unknown_name
from qgraph.recipe_files import read_toml, validated
from qgraph.search.devices.device import Device, Rates

__all__ = ["Device", "Rates", "load_device", "named_devices"]


def named_devices() -> list[str]:
    """Return the names of the devices that ship with qgraph, sorted."""
    files = resources.files("qgraph.search.devices").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_device(name_or_path: str) -> Device:
    """Read a device that ships with qgraph, by name, or a TOML file, by path.

    Args:
        name_or_path: What ends in `.toml` is a path, everything else a name.

    Raises:
        UsageError: An unknown name, a missing file, or a key or value that is wrong.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path).expanduser()
        return validated(Device, read_toml(path, "device file"), str(path))
    if name_or_path not in named_devices():
        found = unknown_name("device", name_or_path, named_devices())
        raise UsageError(found.what, fix=f"{found.fix or ''}, or give a file that ends in .toml")
    path = Path(__file__).parent / f"{name_or_path}.toml"
    return validated(Device, read_toml(path, "device file"), f"device {name_or_path}")
