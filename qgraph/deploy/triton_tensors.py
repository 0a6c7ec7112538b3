"""Inputs and outputs as Triton's configuration spells them, and the axis that it may batch.

Source: github.com/triton-inference-server/server, docs/user_guide/model_configuration.md, and the
checks in its backends' sources (onnxruntime_backend, openvino_backend).
"""

from collections.abc import Sequence
from typing import Any

from qgraph.deploy.payload import Payload
from qgraph.deploy.pbtxt import Word
from qgraph.deploy.triton_backends import TYPES, Backend
from qgraph.errors import ModelError
from qgraph.runtime.backend import TensorInfo


def batch_axis(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> tuple[bool, str]:
    """Whether requests can be put together along the first axis, and if not, why.

    They can if the first axis of every input and output is dynamic and has one name.
    """
    if stuck := free_axis(inputs, outputs):
        return False, stuck
    names = {info.shape[0] for info in (*inputs, *outputs)}
    if len(names) > 1 or None in names:
        shown = ", ".join(sorted("?" if name is None else str(name) for name in names))
        return (
            False,
            f"nothing says that the first axes are one batch axis (they are called {shown})",
        )
    return True, ""


def free_axis(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> str:
    """Say which input or output has no dynamic first axis; "" where all have one."""
    for kind, infos in (("input", inputs), ("output", outputs)):
        for info in infos:
            if not info.shape:
                return f"{kind} {info.name!r} has no axes"
            if isinstance(info.shape[0], int):
                return f"the first axis of {kind} {info.name!r} is fixed to {info.shape[0]}"
    return ""


def tensors(
    payload: Payload, kind: str, backend: Backend, *, batched: bool
) -> list[dict[str, Any]]:
    """Write inputs or outputs as Triton's messages.

    Args:
        payload: The model.
        kind: `input` or `output`.
        backend: What will run it.
        batched: Whether Triton adds the first axis itself.

    Raises:
        ModelError: Triton or the backend can't take a type or shape.
    """
    infos = payload.inputs if kind == "input" else payload.outputs
    messages = []
    for info in infos:
        where = f"{kind} {info.name!r}"
        message: dict[str, Any] = {
            "name": info.name,
            "data_type": _type(info, where, backend),
        }
        if not info.shape:
            _check_scalar(payload, info, where, backend)
        dims = [-1 if not isinstance(dim, int) else dim for dim in info.shape][int(batched) :]
        if 0 in dims:
            raise ModelError(
                "has an axis of length 0, which Triton does not take",
                where=where,
                fix="export the model with a dynamic axis there",
            )
        # Triton wants at least one axis and can take it away again; without batching a single 1
        # stands for a scalar.
        message["dims"] = dims or [1]
        if batched and not dims:
            message["reshape"] = {"shape": []}
        messages.append(message)
    return messages


def _type(info: TensorInfo, where: str, backend: Backend) -> Word:
    known = TYPES.get(info.dtype)
    if known is None:
        raise ModelError(
            f"is {info.dtype}, for which Triton has no type",
            where=where,
            fix="give the model an input or output of another type",
        )
    if known not in backend.types:
        raise ModelError(
            f"is {info.dtype}, which Triton's {backend.name} backend does not take",
            where=where,
            fix="choose another --backend, or give the model another type",
        )
    return Word(known)


def _check_scalar(payload: Payload, info: TensorInfo, where: str, backend: Backend) -> None:
    if info.name in payload.rankless:
        raise ModelError(
            "has an unknown number of axes, and Triton wants to know them",
            where=where,
            fix="export the model with a shape for it",
        )
    if not backend.scalars:
        raise ModelError(
            f"is a scalar, which Triton's {backend.name} backend does not take",
            where=where,
            fix="choose --backend onnxruntime, or export the model with one axis there",
        )
