"""Quantized weights on disk, as they finish: memory stays small, and an interrupted run goes on."""

import json
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.cache import cache_folder, new_digest
from qgraph.data.npy import reading
from qgraph.encoding import INTEGERS, Encoding
from qgraph.errors import DataError
from qgraph.facts import QuantizedWeight
from qgraph.passes.weight_only.solve import Solution

# Smaller codes are not worth a file: a small model stays in memory.
_LEAST_BYTES = 1 << 20


class Store:
    """A folder with the solutions of groups of layers, each written whole or not at all.

    Codes, scales and zero points are mapped from there, not held. `close` removes the folder; what was mapped stays
    readable as long as it is used.
    """

    def __init__(self, key: str | None) -> None:
        """Open the store of an earlier run with this key, or an empty one.

        Args:
            key: What the solutions depend on; None for a store that nobody finds again.
        """
        _allow_many_files()
        base = None if key is None else cache_folder()
        self._temporary = base is None
        if base is None:
            self._folder = Path(tempfile.mkdtemp(prefix="qgraph-"))
        else:
            self._folder = base / f"weights-{new_digest(key or '')}"
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def close(self, *, finished: bool) -> None:
        """Remove the folder; of a run that did not finish only where nobody would find it."""
        if finished or self._temporary:
            shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, group: int, solutions: list[Solution]) -> list[Solution]:
        """Keep the solutions of one group; return them with their codes on disk.

        Results that are no uniform codes stay in memory.
        """
        kept = [self._mapped(group, index, each) for index, each in enumerate(solutions)]
        if all(isinstance(each.weight, QuantizedWeight) for each in kept):
            self._write(group, kept)
        return kept

    def get(self, group: int) -> list[Solution] | None:
        """Return the solutions of a group, or None where they are missing or damaged."""
        path = self._folder / f"{group}.npz"
        if not path.is_file():
            return None
        try:
            with reading(str(path)), np.load(path, allow_pickle=False) as archive:
                heads = json.loads(archive["heads"].tobytes())
                arrays = {name: archive[name] for name in archive.files}
            return [self._read(group, i, head, arrays) for i, head in enumerate(heads)]
        except (DataError, OSError, ValueError, KeyError, IndexError, TypeError):
            return None

    def _write(self, group: int, solutions: list[Solution]) -> None:
        arrays: dict[str, NDArray[Any]] = {}
        heads = []
        for index, each in enumerate(solutions):
            assert isinstance(each.weight, QuantizedWeight)
            encoding = each.weight.encoding
            if each.scale is not None:
                arrays[f"by{index}"] = each.scale
            if not self._file(group, index).is_file():
                arrays[f"scale{index}"] = encoding.scale
                arrays[f"zero{index}"] = encoding.zero_point
                arrays[f"codes{index}"] = each.weight.codes.astype(np.int16)
            heads.append(
                {
                    "dtype": encoding.dtype,
                    "block": list(encoding.block),
                    "weight_loss": each.weight.loss,
                    "before": each.before,
                    "loss": each.loss,
                    "method": each.method,
                    "note": each.note,
                    "seconds": each.seconds,
                }
            )
        arrays["heads"] = np.frombuffer(json.dumps(heads).encode(), np.uint8)
        handle, draft = tempfile.mkstemp(suffix=".tmp", dir=self._folder)
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(draft, self._folder / f"{group}.npz")

    def _read(
        self, group: int, index: int, head: dict[str, Any], arrays: dict[str, NDArray[Any]]
    ) -> Solution:
        dtype, block, loss = head["dtype"], tuple(head["block"]), float(head["weight_loss"])
        if f"codes{index}" in arrays:
            codes = arrays[f"codes{index}"].astype(INTEGERS[dtype][2])
            encoding = Encoding(dtype, arrays[f"scale{index}"], arrays[f"zero{index}"], block)
            weight = QuantizedWeight(codes, encoding, loss)
        else:
            weight = self._mapped_weight(group, index, dtype, block, loss)
        return Solution(
            weight,
            arrays.get(f"by{index}"),
            head["before"],
            float(head["loss"]),
            str(head["method"]),
            str(head["note"]),
            float(head["seconds"]),
        )

    def _mapped(self, group: int, index: int, solution: Solution) -> Solution:
        weight = solution.weight
        if not isinstance(weight, QuantizedWeight) or weight.codes.nbytes < _LEAST_BYTES:
            return solution
        encoding = weight.encoding
        # numpy's files know no 4-bit type: the bytes are stored, one a code.
        fields: dict[str, NDArray[Any]] = {
            "codes": np.ascontiguousarray(weight.codes).view(np.uint8),
            "scale": encoding.scale,
            "zero_point": encoding.zero_point,
        }
        layout = [(name, array.dtype, array.shape) for name, array in fields.items()]
        # One file and one mapping: each mapping keeps a file open.
        record = np.zeros(1, np.dtype(layout, align=True))
        for name, array in fields.items():
            record[name][0] = array
        np.save(self._file(group, index), record)
        mapped = self._mapped_weight(group, index, encoding.dtype, encoding.block, weight.loss)
        return replace(solution, weight=mapped)

    def _mapped_weight(
        self, group: int, index: int, dtype: str, block: tuple[int, ...], loss: float
    ) -> QuantizedWeight:
        record = np.load(self._file(group, index), mmap_mode="r")
        codes = record["codes"][0].view(INTEGERS[dtype][2])
        encoding = Encoding(dtype, record["scale"][0], record["zero_point"][0], block)
        return QuantizedWeight(codes, encoding, loss)

    def _file(self, group: int, index: int) -> Path:
        return self._folder / f"{group}-{index}.npy"


def _allow_many_files() -> None:
    """Raise the limit of open files as far as it goes: each mapped one counts, one a layer."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
