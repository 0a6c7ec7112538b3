"""Intel Neural Compressor: its accuracy-driven tuning, which leaves operators in float one after the other."""

import shutil
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

    trial = Path("trial.onnx").resolve()
    best = folder / "neural-compressor-best.onnx"
    tried: list[float] = []

    def evaluate(candidate: onnx.ModelProto) -> float:
        onnx.save(candidate, str(trial))
        found = score(trial)
        # The first is the float model itself; one that does not run drops by far more than 1.
        if tried and found < min(tried[1:], default=1.0):
            shutil.move(trial, best)
        tried.append(found)
        return 1.0 - found

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
    if found is None:
        return {best.stem: ended(tried[1:], drop)}
    best.unlink(missing_ok=True)
    found.save(str(folder / "neural-compressor.onnx"))
    return {"neural-compressor": f"tuned in {len(tried) - 1} trials"}


def ended(drops: list[float], drop: float) -> str:
    """What to say where the tool returns nothing.

    Interrupted by its time limit, it has let go of the best model, and returns nothing, although a
    trial was good enough.
    """
    least = min(drops, default=float("inf"))
    if least <= drop:
        which = drops.index(least) + 1
        return f"trial {which} of {len(drops)} within {drop:g}; the tool lost it when time was over"
    return f"no trial of {len(drops)} within {drop:g}; that which came closest"
