"""What `deploy` can be told for Triton."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TritonOptions:
    """What `deploy` takes for Triton; None leaves it to qgraph.

    Attributes:
        name: The model's name on the server; default: the artifact's folder.
        version: Number of the version; default: the next.
        backend: `onnxruntime`, `tensorrt` or `openvino`; default: the artifact's engine.
        max_batch: Largest batch; 0 leaves the first axis to the client.
        dynamic_batching: Whether the server puts requests together; default: where it can.
        preferred_batch: Sizes of batches that it tries to reach.
        queue_delay_us: How long it may wait for them, in microseconds.
        instances: Copies of the model, on each GPU where there are several.
        gpus: GPUs by number; default: all.
        version_policy: `latest`, `latest:N`, `all` or `specific:1,3`.
        warm_up: `zeros`, `sample` or `none`; default: the data's sample, zeros without data.
    """

    name: str | None = None
    version: int | None = None
    backend: str | None = None
    max_batch: int | None = None
    dynamic_batching: bool | None = None
    preferred_batch: tuple[int, ...] | None = None
    queue_delay_us: int | None = None
    instances: int | None = None
    gpus: tuple[int, ...] | None = None
    version_policy: str | None = None
    warm_up: str | None = None
