"""Intel Neural Compressor: its accuracy-driven tuning, which leaves operators in float one after the other."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TRIALS = 12
TIMEOUT_S = 300


class _Loader:
    """Samples as the tool wants them, labels apart."""

    batch_size = 1

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self.feeds = feeds

    def __iter__(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Give each sample with a label that nobody reads."""
        return iter([(each, 0) for each in self.feeds])


def mixed(
    model: Path,
    feeds: list[dict[str, Any]],
    folder: Path,
    score: Callable[[Path], float],
    drop: float,
) -> dict[str, str]:
    """Tune until the drop is allowed; return notes by name."""
    import onnx
    from neural_compressor import PostTrainingQuantConfig, quantization
    from neural_compressor.config import AccuracyCriterion, TuningCriterion

    trial = folder / "trial.onnx"

    def evaluate(candidate: onnx.ModelProto) -> float:
        onnx.save(candidate, str(trial))
        return 1.0 - score(trial)

    config = PostTrainingQuantConfig(
        approach="static",
        quant_format="QDQ",
        calibration_sampling_size=[len(feeds)],
        accuracy_criterion=AccuracyCriterion(criterion="absolute", tolerable_loss=drop),
        tuning_criterion=TuningCriterion(max_trials=TRIALS, timeout=TIMEOUT_S),
    )
    found = quantization.fit(
        str(model), config, calib_dataloader=_Loader(feeds), eval_func=evaluate
    )
    trial.unlink(missing_ok=True)
    if found is None:
        return {
            "neural-compressor": f"fails: no model within {drop:g} in {TRIALS} trials or {TIMEOUT_S} s"
        }
    found.save(str(folder / "neural-compressor.onnx"))
    return {"neural-compressor": "tuned"}
