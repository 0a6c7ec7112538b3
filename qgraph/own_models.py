"""Models for one engine alone: the compiled one, in operators that no other engine has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.pipeline import Hook, Pass, Pipeline, Stage


@dataclass(frozen=True)
class OwnModel:
    """One engine's model.

    Attributes:
        path: Its file, beside the compiled model.
        stages: The passes that made it of that.
    """

    path: Path
    stages: list[Stage]


def own_models(
    model: Path, passes: Mapping[str, Sequence[Pass]], context: Context, hooks: Sequence[Hook]
) -> dict[str, OwnModel]:
    """Write the models of engines for which there is something to rewrite.

    Args:
        model: The compiled model.
        passes: By engine; see `qgraph.flow.own_passes`.
        context: For the passes.
        hooks: Called after every pass.
    """
    found = {}
    for engine, each in passes.items():
        graph = onnx_io.load(model)
        onnx_io.infer_shapes(graph)
        stages = Pipeline(each, hooks=hooks).run(graph, context)
        if not _changed(stages):
            continue
        path = model.with_name(f"{engine}.onnx")
        onnx_io.save(graph, path)
        found[engine] = OwnModel(path, stages)
    return found


def adopt(model: Path, own: Mapping[str, OwnModel], fastest: Path | None) -> list[Stage]:
    """Put the fastest of several models in the compiled one's place and remove the others.

    Returns:
        The passes that made the fastest one; none where the compiled one stays.
    """
    stages: list[Stage] = []
    for each in own.values():
        if each.path == fastest:
            onnx_io.save(onnx_io.load(each.path), model)
            stages = each.stages
        for file in model.parent.glob(f"{each.path.name}*"):
            file.unlink()
    return stages


def _changed(stages: Sequence[Stage]) -> bool:
    """Whether an operator was written; merging equal nodes alone is no reason for a model."""
    return any(stage.report.changed for stage in stages if stage.name != "merge_equal")
