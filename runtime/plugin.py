"""Execution providers that come as plugins of ONNX Runtime, in packages of their own."""

import threading
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from qgraph.errors import EngineError
from qgraph.runtime.ort_session import error_line, load_onnxruntime

_registering = threading.Lock()


def plugin_devices(package: str, where: str, install: str) -> list[Any]:
    """Devices that a plugin offers, with the plugin registered once a process.

    Args:
        package: Module with `get_ep_name` and `get_library_path`.
        where: Backend, for errors.
        install: What to do where it is missing.

    Raises:
        EngineError: The plugin is missing or can't be loaded.
    """
    onnxruntime = load_onnxruntime()
    try:
        plugin = import_module(package)
    except ImportError as error:
        name = package.replace("_", "-")
        raise EngineError(
            f"{name} can't be imported ({error})", where=where, fix=install
        ) from error
    with _registering:
        found = devices(onnxruntime, plugin)
        # The caller's own code may have registered it already, under a name of its own.
        if not found:
            register(onnxruntime, plugin, where)
            found = devices(onnxruntime, plugin)
    return found


def devices(onnxruntime: ModuleType, plugin: ModuleType) -> list[Any]:
    """Devices of a plugin that ONNX Runtime knows; none before it is registered."""
    name = plugin.get_ep_name()
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]


@cache
def register(onnxruntime: ModuleType, plugin: ModuleType, where: str) -> None:
    """Register a plugin; cached, since onnxruntime refuses a second registration.

    Raises:
        EngineError: Its library can't be loaded.
    """
    try:
        library = plugin.get_library_path()
        onnxruntime.register_execution_provider_library(f"qgraph.{where}", library)
    except Exception as error:
        raise EngineError(
            f"the plugin can't be loaded: {error_line(error)}",
            where=where,
            fix="reinstall onnxruntime and the plugin in matching versions",
        ) from error
