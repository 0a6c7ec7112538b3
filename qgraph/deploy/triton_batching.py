"""How large Triton's batches are, and whether it puts requests together."""

from typing import Any

from qgraph.deploy.payload import PLAN, PLAN_RECORD, Payload
from qgraph.deploy.remarks import Remarks
from qgraph.deploy.triton_backends import Backend
from qgraph.deploy.triton_options import TritonOptions
from qgraph.deploy.triton_tensors import batch_axis, free_axis
from qgraph.errors import ArtifactError, UsageError

DEFAULT_MAX_BATCH = 8


def max_batch_size(
    payload: Payload, backend: Backend, options: TritonOptions, remarks: Remarks
) -> int:
    """The largest batch; 0 where Triton is not to know a batch axis.

    Raises:
        UsageError: A batch was asked for that the model can't do.
    """
    largest = profile_batch(payload) if backend.name == "tensorrt" else None
    if options.max_batch is not None:
        stuck = free_axis(payload.inputs, payload.outputs)
        if options.max_batch > 0 and stuck:
            raise UsageError(
                f"--max-batch {options.max_batch}: {stuck}",
                fix="leave --max-batch out, or export the model with a dynamic batch axis",
            )
        if largest is not None and options.max_batch > largest:
            raise UsageError(
                f"--max-batch {options.max_batch}: {PLAN} was built for batches up to {largest}",
                fix="give a smaller one, or build the engine for larger shapes",
            )
        return options.max_batch
    able, reason = batch_axis(payload.inputs, payload.outputs)
    if not able:
        remarks.notes.append(f"the server does not put requests together: {reason}")
        return 0
    if largest is not None:
        return largest
    if not backend.batches:
        remarks.notes.append(
            f"the server does not put requests together: the {backend.name} backend does so only "
            "with --max-batch N, see docs/deploy.md"
        )
        return 0
    return DEFAULT_MAX_BATCH


def profile_batch(payload: Payload) -> int | None:
    """The largest batch that the TensorRT engine takes, where its record says so."""
    profiles = payload.plan_record.get("profiles")
    try:
        return min(int(shapes[2][0]) for shapes in profiles[0].values()) if profiles else None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{PLAN_RECORD} is damaged", where=str(payload.artifact.path), fix="compile it again"
        ) from error


def dynamic_batching(max_batch: int, options: TritonOptions) -> dict[str, Any] | None:
    """Dynamic batching, or None.

    Raises:
        UsageError: Its options are given where there is no batching, or a size is too large.
    """
    wanted = options.preferred_batch or options.queue_delay_us is not None
    if max_batch < 2 or options.dynamic_batching is False:
        if wanted or options.dynamic_batching:
            why = "--no-dynamic-batching" if options.dynamic_batching is False else "there is none"
            raise UsageError(
                f"options of dynamic batching were given, and {why} (largest batch {max_batch})",
                fix="pass --max-batch N with N of 2 or more, or leave them out",
            )
        return None
    sizes = sorted(set(options.preferred_batch or ()))
    if sizes and (sizes[0] < 1 or sizes[-1] > max_batch):
        raise UsageError(
            f"--preferred-batch {','.join(map(str, sizes))} does not lie within 1 and {max_batch}",
            fix="raise --max-batch or leave the larger sizes out",
        )
    delay = options.queue_delay_us
    return ({"preferred_batch_size": sizes} if sizes else {}) | (
        {"max_queue_delay_microseconds": delay} if delay is not None else {}
    )
