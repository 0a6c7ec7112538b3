"""A model repository for Triton Inference Server."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from qgraph.deploy import Deployment
from qgraph.deploy.layout import (
    add,
    check_repository,
    check_settings,
    choose_version,
    create,
    existing,
    inherit,
    model_name,
    written,
)
from qgraph.deploy.payload import Payload
from qgraph.deploy.record import DeployRecord
from qgraph.deploy.triton_check import check
from qgraph.deploy.triton_config import settings, text
from qgraph.deploy.triton_options import TritonOptions
from qgraph.deploy.triton_readme import readme
from qgraph.deploy.triton_warmup import warm_up
from qgraph.text import counted

CONFIG = "config.pbtxt"
# What each version has for itself, or only the first one decides.
_OWN = ("name", "version", "warm_up")


class Triton:
    """DIR/NAME/config.pbtxt and DIR/NAME/VERSION/model.onnx, or model.plan."""

    name: ClassVar[str] = "triton"
    options: ClassVar[type] = TritonOptions

    def write(self, payload: Payload, folder: Path, options: TritonOptions) -> Deployment:
        """Write a model, or one more version of it; see `qgraph.deploy.Destination.write`."""
        check_repository(folder, foreign=(CONFIG,))
        name = model_name(payload, options.name)
        place = folder / name
        before = existing(place, self.name)
        chosen = inherit(options, before, _OWN)
        fields, remarks = settings(payload, chosen)
        check_settings(place, before, fields)
        version = choose_version(place, before, options.version, payload)
        files = _files(payload, fields)
        if before is not None:
            record = before
            add(place, version, files, record, payload)
            if options.warm_up is not None:
                remarks.notes.append("--warm-up is for a model's first version")
            remarks.notes.append(f"{CONFIG} stays as it was")
        else:
            record = DeployRecord(
                to=self.name, options=_given(chosen), settings=fields, versions={}
            )
            requests, samples = warm_up(payload, options.warm_up, fields, remarks)
            config = text(name, fields, requests)
            check(config)
            shared = {
                CONFIG: config.encode(),
                "README.md": readme(payload, name, folder, fields).encode(),
            }
            create(place, version, files, shared | samples, record, payload)
        return Deployment(
            to=self.name,
            folder=place,
            files=written(place, record, version, new=before is None),
            facts=_facts(name, version, fields),
            remarks=payload.remarks + remarks,
        )


def _files(payload: Payload, fields: dict[str, Any]) -> dict[str, Path]:
    """Name in the version's folder -> file. External data keeps the name that the model has."""
    if fields["backend"] == "tensorrt" and payload.plan is not None:
        return {fields["default_model_filename"]: payload.plan}
    folder = payload.artifact.path
    return {path.relative_to(folder).as_posix(): path for path in payload.model}


def _given(options: TritonOptions) -> dict[str, Any]:
    return {
        key: value
        for key, value in asdict(options).items()
        if value is not None and key not in _OWN
    }


def _facts(name: str, version: int, fields: dict[str, Any]) -> dict[str, str]:
    group, largest = fields["instance_group"][0], fields["max_batch_size"]
    where = "every GPU" if group["kind"] == "KIND_GPU" else "the CPU"
    if "gpus" in group:
        where = f"GPU {', '.join(map(str, group['gpus']))}"
    batches = "requests run one by one, as they are sent"
    if largest:
        together = fields["dynamic_batching"] is not None
        batches = f"up to {largest}, {'put together by the server' if together else 'as sent'}"
    return {
        "model": f"{name}, version {version}",
        "backend": f"{fields['backend']} on {where}, {counted(group['count'], 'instance')}",
        "batches": batches,
    }
