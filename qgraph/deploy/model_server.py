"""A model repository for OpenVINO Model Server.

Sources: docs/models_repository_classic.md, docs/parameters.md and src/schema.cpp of
github.com/openvinotoolkit/model_server.
"""

import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from qgraph.deploy import Deployment
from qgraph.deploy.engines import openvino_properties
from qgraph.deploy.layout import (
    add,
    check_repository,
    check_settings,
    choose_version,
    create,
    existing,
    inherit,
    model_name,
    version_policy,
    written,
)
from qgraph.deploy.model_server_readme import readme
from qgraph.deploy.openvino_check import check_openvino
from qgraph.deploy.payload import Payload
from qgraph.deploy.record import DeployRecord
from qgraph.deploy.remarks import Remarks
from qgraph.errors import ArtifactError, DataError, ModelError, UsageError
from qgraph.strict_json import read_json

CONFIG = "config.json"
# Where the README's command mounts the repository: older servers take absolute paths alone.
MOUNT = "/models"
_LIST = "model_config_list"
# Of the server's KServe API, by what numpy calls them.
_TYPES = frozenset(
    ["bool", "string", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64))]
    + [f"float{bits}" for bits in (16, 32, 64)]
)
_OWN = ("name", "version")


@dataclass(frozen=True)
class ModelServerOptions:
    """What `deploy` takes for OpenVINO Model Server; None leaves it to qgraph.

    Attributes:
        name: The model's name on the server; default: the artifact's folder.
        version: Number of the version; default: the next.
        instances: Requests that are computed side by side.
        shape: `INPUT:1x3x224x224`, an input's shape for all requests; default: the model's own,
            dynamic axes left as they are.
        version_policy: `latest`, `latest:N`, `all` or `specific:1,3`.
    """

    name: str | None = None
    version: int | None = None
    instances: int | None = None
    shape: tuple[str, ...] | None = None
    version_policy: str | None = None


class ModelServer:
    """DIR/config.json and DIR/NAME/VERSION/model.onnx, which the server reads as it is."""

    name: ClassVar[str] = "openvino-model-server"
    options: ClassVar[type] = ModelServerOptions

    def write(self, payload: Payload, folder: Path, options: ModelServerOptions) -> Deployment:
        """Write a model, or one more version of it; see `qgraph.deploy.Destination.write`."""
        check_repository(folder, foreign=("config.pbtxt",))
        name = model_name(payload, options.name)
        place = folder / name
        before = existing(place, self.name)
        listed = _read_list(folder / CONFIG)
        if before is None and any(_named(each) == name for each in listed[_LIST]):
            raise ArtifactError(
                f"lists a model {name!r} of another place already",
                where=str(folder / CONFIG),
                fix="choose another --name",
            )
        chosen = inherit(options, before, _OWN)
        config = _config(payload, name, chosen)
        check_settings(place, before, config)
        remarks = Remarks(notes=_notes(payload, config))
        version = choose_version(place, before, options.version, payload)
        files = {path.relative_to(payload.artifact.path).as_posix(): path for path in payload.model}
        if before is not None:
            record = before
            add(place, version, files, record, payload)
        else:
            given = {k: v for k, v in asdict(chosen).items() if v is not None and k not in _OWN}
            record = DeployRecord(to=self.name, options=given, settings=config, versions={})
            page = readme(payload, name, folder, MOUNT)
            create(place, version, files, {"README.md": page.encode()}, record, payload)
        paths = written(place, record, version, new=before is None)
        if all(_named(each) != name for each in listed[_LIST]):
            listed[_LIST].append({"config": config})
            _replace(folder / CONFIG, json.dumps(listed, indent=2) + "\n")
            paths.append(folder / CONFIG)
        return Deployment(
            to=self.name,
            folder=place,
            files=paths,
            facts={
                "model": f"{name}, version {version}",
                "precision": f"float parts in {config['plugin_config']['INFERENCE_PRECISION_HINT']}",
            },
            remarks=payload.remarks + remarks,
        )


def _config(payload: Payload, name: str, options: ModelServerOptions) -> dict[str, Any]:
    """The model's entry in config.json.

    Raises:
        UsageError: An option can't be understood or does not fit the model.
        ModelError: The server's API has no type for an input or output.
    """
    for info in (*payload.inputs, *payload.outputs):
        if info.dtype not in _TYPES:
            raise ModelError(
                f"is {info.dtype}, which OpenVINO Model Server's API does not have",
                where=f"input or output {info.name!r}",
                fix="give the model an input or output of another type",
            )
    properties = openvino_properties(payload.options)
    config: dict[str, Any] = {
        "name": name,
        "base_path": f"{MOUNT}/{name}",
        # Left out, newer servers take a GPU where they find one.
        "target_device": "CPU",
        "model_version_policy": version_policy(options.version_policy),
        "plugin_config": properties,
    }
    if options.instances:
        properties["NUM_STREAMS"] = str(options.instances)
        config["nireq"] = options.instances
    if options.shape:
        config["shape"] = dict(_shape(payload, each) for each in options.shape)
    return config


def _shape(payload: Payload, text: str) -> tuple[str, str]:
    name, _, rest = text.rpartition(":")
    found = {info.name: info for info in payload.inputs}
    if not name or not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", rest, re.ASCII):
        raise UsageError(
            f"--shape {text!r} can't be understood", fix="write it like --shape image:1x3x224x224"
        )
    if name not in found:
        known = ", ".join(found)
        raise UsageError(f"--shape {text!r}: there is no input {name!r}", fix=f"it has {known}")
    sizes = [int(size) for size in rest.split("x")]
    own = found[name].shape
    fits = len(own) == len(sizes) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(own, sizes, strict=True)
    )
    if not fits:
        raise UsageError(
            f"--shape {text!r} does not fit {found[name]}", fix="only dynamic axes can be given"
        )
    return name, f"({','.join(map(str, sizes))})"


def _notes(payload: Payload, config: dict[str, Any]) -> list[str]:
    notes = []
    if payload.plan is not None:
        notes.append("the TensorRT engine stays behind: OpenVINO serves model.onnx")
    if not check_openvino(payload.artifact.model_path, config["plugin_config"]):
        notes.append(
            "without the package openvino it was not tried whether OpenVINO takes the model"
        )
    return notes


def _read_list(file: Path) -> dict[str, Any]:
    """The server's configuration, with a list of models in it.

    Raises:
        ArtifactError: It is something else.
    """
    if not file.exists():
        return {_LIST: []}
    try:
        found = read_json(file)
    except DataError as error:
        raise ArtifactError(
            f"can't be read ({error.what})", where=str(file), fix="name another folder"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get(_LIST), list):
        raise ArtifactError(
            f"is no configuration of OpenVINO Model Server (it has no {_LIST})",
            where=str(file),
            fix="name another folder",
        )
    return found


def _named(entry: Any) -> Any:
    config = entry.get("config") if isinstance(entry, dict) else None
    return config.get("name") if isinstance(config, dict) else None


def _replace(file: Path, text: str) -> None:
    """Write a file at once, so that a server that watches it never reads half of it."""
    handle, scratch = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    Path(scratch).chmod(0o644)
    Path(scratch).replace(file)
