"""The manifest: what an artifact says about itself, as `manifest.json`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Source(_Part):
    """The model that was compiled."""

    name: str
    sha256: str
    bytes: int
    path: str | None = None
    """Where its file lay; None for a model in memory."""


class StageRecord(_Part):
    """What one pass did."""

    name: str
    seconds: float
    changed: int
    options: dict[str, Any] = Field(default_factory=dict)
    refused: dict[str, int] = Field(default_factory=dict)
    """Reason -> how often; the nodes are in explain.json."""
    warnings: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    """Where results came from."""
    layers: list[dict[str, Any]] = Field(default_factory=list)
    """What was measured of each layer."""


class Engine(_Part):
    """The backend that was fastest on this model, with its options."""

    backend: str
    options: dict[str, Any] = Field(default_factory=dict)
    candidate: str = ""
    """Its name among the timings."""


class Timing(_Part):
    """Latency of one candidate, measured in turn with the others in one run, batch as given."""

    candidate: str
    p50_ms: float | None = None
    p90_ms: float | None = None
    relative_time: float | None = None
    through_host_p50_ms: float | None = None
    """Where the engine computes elsewhere than on the host: with numpy arrays, which are copied there
    and back; the other times are of buffers that are there."""
    reason: str = ""


class Accuracy(_Part):
    """The artifact against the original in the unoptimised reference."""

    samples: int
    data: Literal["held out", "calibration", "random"]
    outputs: list[dict[str, Any]]
    state: list[str] = Field(default_factory=list)
    """Outputs that are KV caches: compared like the others, but floors are for answers."""
    min_sqnr_db: float | None = None
    passed: bool = True
    failures: list[str] = Field(default_factory=list)


class FileRecord(_Part):
    """What a file held when it was written; None in manifests of before files were hashed."""

    sha256: str | None = None
    bytes: int | None = None


class Promise(_Part):
    """What was asked of the model's score, and the measurement that proves it."""

    metric: str
    better: Literal["higher", "lower"]
    max_drop: float | None = None
    """In the metric's unit: 0.005 is half a point of a share."""
    optimize: str
    max_bytes: int | None = None
    max_ms: float | None = None
    holds: bool
    broken: list[str] = Field(default_factory=list)
    """What does not hold, and what would."""
    score: float
    original: float
    drop: float
    """By how much the artifact is worse than the original on the samples of the proof."""
    interval: tuple[float, float]
    """95% interval of the drop, the same draws for both models."""
    samples: int
    """Rows that no step of the search has seen."""
    judged_by: Literal["drop", "upper bound"]
    """With few samples what the drop stays below must not be above what is allowed."""
    bound: float | None = None
    """What was held to that: the drop, or with few samples what it stays below, by the margins of the
    answers where the metric has them, else by the interval."""
    looks: int = 1
    """Models that were tried on these samples, this one included."""
    engine: str = ""
    p50_ms: float | None = None
    float_engine: str = ""
    """The fastest float model, timed in turn with the artifact."""
    float_p50_ms: float | None = None
    relative_time: float | None = None
    """Latency by that of the fastest float model, of what one run in ten stays below."""
    latency_estimated: bool = False
    """Whether times are estimates for a device that was not there; the notes say which."""
    peak_bytes: int | None = None
    """Memory that the model adds to a process, where memory was asked for."""
    float_peak_bytes: int | None = None
    reason: str = ""
    """Why this model was chosen."""
    notes: list[str] = Field(default_factory=list)


class Manifest(_Part):
    """Everything that is known about an artifact."""

    schema_version: int = SCHEMA_VERSION
    qgraph_version: str
    created: str
    packages: dict[str, str]
    source: Source
    target: str
    requested_precision: str
    precision: str
    recipe: dict[str, Any]
    data: dict[str, Any] | None = None
    random_calibration: bool = False
    stages: list[StageRecord] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    engine: Engine | None = None
    timed: str = ""
    """What the candidates were timed on: one sample, or a decoder's step of one token."""
    timings: list[Timing] = Field(default_factory=list)
    not_timed: str = ""
    """Why nothing was timed: no engine of the target runs on the machine that compiled."""
    plan: dict[str, Any] | None = None
    """The engine that was built beside the model, as its own record says; None without one."""
    accuracy: Accuracy | None = None
    promise: Promise | None = None
    """What was promised of the score, where it was asked for."""
    io: dict[str, Any] | None = None
    """Inputs and outputs that are not the original's; see `qgraph.interface`."""
    nodes: dict[str, int] = Field(default_factory=dict)
    """Precision -> number of nodes."""
    original_bytes: int
    artifact_bytes: int
    files: dict[str, FileRecord] = Field(default_factory=dict)
    """Every other file of the artifact, by its path inside."""

    @field_validator("files", mode="before")
    @classmethod
    def _names_alone(cls, files: Any) -> Any:
        """Read the list of names that manifests held before files were hashed."""
        if isinstance(files, list) and all(isinstance(name, str) for name in files):
            return {name: FileRecord() for name in files}
        return files
