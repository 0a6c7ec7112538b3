"""Samples as onnxruntime's quantizer wants them; ModelOpt and Quark take the same protocol."""

from collections.abc import Iterator
from typing import Any

from onnxruntime.quantization import CalibrationDataReader


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the samples out one by one."""

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        """Begin at the first sample."""
        self.feeds = feeds
        self.samples: Iterator[dict[str, Any]] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        """Give the next sample, None at the end."""
        return next(self.samples, None)

    def get_first(self) -> dict[str, Any]:
        """Give the first sample again, for tools that look at shapes."""
        return self.feeds[0]

    def rewind(self) -> None:
        """Start again."""
        self.samples = iter(self.feeds)

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.feeds)
