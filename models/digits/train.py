"""Trains the three digit networks and writes their ONNX files and `accuracy.json`.

Run it from the repository's root in an environment with the project's `train` extra and
onnxruntime: `python -m models.digits.train [cnn] [vit] [gru]`. One thread and fixed seeds: the
same versions on the same machine give the same files. A minute or two for all three.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.digits.data import HERE, Digits, load_training
from models.digits.networks import DigitsCnn, DigitsGru, DigitsVit


@dataclass(frozen=True)
class Plan:
    """How one network is built, trained and exported.

    Attributes:
        build: Makes the untrained network.
        opset: ONNX opset of the export; 16 makes the exporter decompose LayerNorm.
        epochs: Passes over the training images.
        rate: Largest learning rate of the one-cycle schedule.
        floor: Test accuracy below which nothing is written.
    """

    build: Callable[[], nn.Module]
    opset: int
    epochs: int
    rate: float
    floor: float


PLANS = {
    "cnn": Plan(DigitsCnn, opset=17, epochs=40, rate=0.01, floor=0.97),
    "vit": Plan(DigitsVit, opset=16, epochs=100, rate=0.002, floor=0.94),
    "gru": Plan(DigitsGru, opset=17, epochs=80, rate=0.01, floor=0.95),
}


def train(plan: Plan, digits: Digits, seed: int = 0) -> nn.Module:
    """Return the network of `plan`, trained on shifted copies of the training images."""
    torch.manual_seed(seed)
    network = plan.build()
    images, labels = torch.from_numpy(digits.train_x), torch.from_numpy(digits.train_y)
    steps = -(-len(images) // 64) * plan.epochs
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.rate, total_steps=steps)
    network.train()
    for _ in range(plan.epochs):
        for batch in torch.split(torch.randperm(len(images)), 64):
            loss = nn.functional.cross_entropy(
                network(shift(images[batch])), labels[batch], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
            optimizer.step()
            schedule.step()
    return network.eval()


def shift(images: torch.Tensor) -> torch.Tensor:
    """Move the batch [N, 1, 8, 8] by -1 to 1 pixels each way, half of the time not at all."""
    if torch.rand(()) < 0.5:
        return images
    down, right = torch.randint(0, 3, (2,)).tolist()
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, down : down + 8, right : right + 8]


def export(network: nn.Module, opset: int, path: Path) -> None:
    """Write plain ONNX with a dynamic batch.

    Training mode PRESERVE on a network in eval mode keeps BatchNormalization as its own node, and
    without constant folding the weights stay as they were trained.
    """
    torch.onnx.export(
        network,
        (torch.zeros(2, 1, 8, 8),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=opset,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        dynamo=False,
    )


def measure(path: Path, digits: Digits) -> dict[str, Any]:
    """Return test accuracy in onnxruntime and the file's size and opset."""
    import onnx
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": digits.test_x})[0]
    correct = int(np.sum(logits.argmax(1) == digits.test_y))
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return {
        "test_accuracy": correct / len(digits.test_y),
        "test_correct": correct,
        "test_images": len(digits.test_y),
        "bytes": path.stat().st_size,
        "parameters": sum(int(np.prod(weight.dims)) for weight in model.graph.initializer),
        "opset": model.opset_import[0].version,
    }


def main() -> None:
    """Train, export and measure the networks named on the command line, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(PLANS)}; default: all")
    names = parser.parse_args().networks or list(PLANS)
    if unknown := set(names) - set(PLANS):
        parser.error(f"unknown network {min(unknown)!r}, choose from {', '.join(PLANS)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = load_training()
    for name in names:
        started = time.perf_counter()
        path = HERE / f"digits_{name}.onnx"
        draft = path.with_suffix(".onnx.draft")
        export(train(PLANS[name], digits), PLANS[name].opset, draft)
        row = measure(draft, digits)
        seconds = time.perf_counter() - started
        print(f"{path.name}: {row['test_accuracy']:.4f}, {row['bytes']} bytes, {seconds:.0f} s")
        if row["test_accuracy"] < PLANS[name].floor:
            draft.unlink()
            raise SystemExit(f"{name} is below its floor of {PLANS[name].floor}: not written")
        draft.replace(path)
        record(path.name, row)


def record(name: str, row: dict[str, Any]) -> None:
    """Put `row` under `name` in accuracy.json, with what it was measured with."""
    import onnx
    import onnxruntime as ort
    import sklearn  # type: ignore[import-untyped,import-not-found,unused-ignore]

    path = HERE / "accuracy.json"
    table = json.loads(path.read_text()) if path.exists() else {"models": {}}
    table["command"] = "python -m models.digits.train"
    table["data"] = "models/digits/digits.npz, test part, onnxruntime CPU EP"
    table["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": ort.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
    }
    table["models"][name] = row
    path.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
