"""One scorer for every file: accuracy, latency and size."""

from pathlib import Path

from benchmarks.accuracy import Task, sqnr
from benchmarks.peers.environments import last_line
from benchmarks.peers.table import Row
from qgraph.runtime import backend
from qgraph.runtime.bench import bench

SECONDS = 1.5


class Reference:
    """The float model, its outputs and what they are worth.

    Attributes:
        task: Model and data.
        score: The float model's score.
    """

    def __init__(self, task: Task) -> None:
        """Run the float model over the evaluation samples."""
        self.task = task
        with backend("onnxruntime-cpu").open(task.model) as session:
            self._exact = task.run(session)
        self.score = task.score(self._exact)

    def complete(self, row: Row, file: Path) -> Row:
        """Score a quantized file; one that onnxruntime can't run gets a note instead of numbers."""
        row.file_mb = file.stat().st_size / 1e6
        try:
            with (
                backend("onnxruntime-cpu").open(self.task.model) as plain,
                backend("onnxruntime-cpu").open(file) as session,
            ):
                # Some tools leave outputs of their own behind; the score looks at the last one.
                got = [
                    {name: each[name] for name in want}
                    for want, each in zip(self._exact, self.task.run(session), strict=True)
                ]
                times = bench(
                    {"float": plain, "int8": session}, self.task.calibration[0], seconds=SECONDS
                )
        except Exception as error:  # noqa: BLE001  (any engine's refusal is a result here)
            row.note = f"onnxruntime: {last_line(str(error))}"
            return row
        row.sqnr = sqnr(self._exact, got, self.task.sides)
        row.score = self.task.score(got)
        row.speed = 1 / times[1].relative_time
        return row
