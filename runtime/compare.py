"""How far a candidate's outputs are from the reference's, accumulated over samples."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qgraph.errors import DataError
from qgraph.runtime.tensors import Array, is_float, type_name

_CHUNK = 1 << 20


@dataclass(frozen=True)
class OutputComparison:
    """One output, candidate against reference, over all samples that were added.

    For floats, with r the reference and c the candidate, over finite values in float64:

    Attributes:
        name: Output name.
        dtype: The reference's ONNX type name.
        samples: Calls of `Comparison.add`.
        elements: Elements compared.
        exact_share: Share of elements that are equal (NaN equals NaN), 1.0 when there are none.
        nonfinite_reference: Elements of the reference that are NaN or infinite.
        nonfinite_candidate: The same of the candidate.
        nonfinite_mismatch: Elements where either is non-finite and they differ. One is enough
            to make `sqnr_db` -inf, `cosine` NaN, `max_abs` and `max_relative` inf.
        max_abs: max |r - c|; None for strings and booleans.
        sqnr_db: 10 log10(sum r^2 / sum (r - c)^2) in dB, inf when equal; None unless float.
        cosine: sum r c / sqrt(sum r^2 sum c^2), 1.0 when both are all zero, 0.0 when one is;
            None unless float.
        max_relative: max_abs / (max r - min r), or / max |r| where r is constant; None unless
            float.
        argmax_agreement: Share of rows whose argmax over the last axis is the same (the first of
            equal values counts); None unless the output looks like logits: float, shape [N, C]
            or [N, T, C], and C at least 3 and the same in all samples. Embeddings and boxes have
            such shapes too: whether the number means anything is the caller's to know.
        argmax_rows: Rows that went into it.
    """

    name: str
    dtype: str
    samples: int
    elements: int
    exact_share: float
    nonfinite_reference: int = 0
    nonfinite_candidate: int = 0
    nonfinite_mismatch: int = 0
    max_abs: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    max_relative: float | None = None
    argmax_agreement: float | None = None
    argmax_rows: int = 0

    def as_json(self) -> dict[str, Any]:
        """Fields as JSON values; JSON has no infinity, so it is the string 'inf' or '-inf'."""
        return {key: _json_number(value) for key, value in asdict(self).items()}


class Comparison:
    """Accumulates comparisons over samples in memory that does not grow with them."""

    def __init__(self) -> None:
        """Start with no sample."""
        self._outputs: dict[str, _Output] = {}

    def add(self, reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> None:
        """Add the outputs of one run.

        Raises:
            DataError: The two, or this and an earlier call, differ in output names, or an
                output in shape or kind; or an output is a sequence or of complex numbers.
        """
        _same_names(reference, candidate, "the candidate")
        if self._outputs:
            _same_names(self._outputs, reference, "this sample")
        for name, value in reference.items():
            ref, cand = _tensor(name, value), _tensor(name, candidate[name])
            if ref.shape != cand.shape:
                raise DataError(
                    f"shape {list(cand.shape)}, the reference has {list(ref.shape)}",
                    where=f"output {name!r}",
                    fix="compare models with the same interface",
                )
            self._outputs.setdefault(name, _Output(name, ref)).add(ref, cand)

    def results(self) -> list[OutputComparison]:
        """One result an output, in the order of the first reference."""
        return [output.result() for output in self._outputs.values()]


def compare(
    reference: Mapping[str, Array], candidate: Mapping[str, Array]
) -> list[OutputComparison]:
    """Compare the outputs of one run; see `Comparison` for several.

    Raises:
        DataError: See `Comparison.add`.
    """
    comparison = Comparison()
    comparison.add(reference, candidate)
    return comparison.results()


def looks_like_logits(value: Array) -> bool:
    """Whether argmax over the last axis may mean a class: float, [N, C] or [N, T, C], C >= 3."""
    return is_float(value.dtype) and value.ndim in (2, 3) and value.shape[-1] >= 3


class _Output:
    """Running sums of one output."""

    def __init__(self, name: str, first: Array) -> None:
        self.name, self.dtype, self.kind = name, type_name(first.dtype), _kind(first.dtype)
        self.samples = self.elements = self.equal = 0
        self.bad_ref = self.bad_cand = self.mismatch = 0
        self.ref2 = self.cand2 = self.product = self.error2 = self.max_abs = 0.0
        self.low, self.high = math.inf, -math.inf
        self.classes = first.shape[-1] if looks_like_logits(first) else None
        self.rows = self.agreeing = 0

    def add(self, ref: Array, cand: Array) -> None:
        for value in (ref, cand):
            if _kind(value.dtype) != self.kind:
                raise DataError(
                    f"{type_name(value.dtype)} against {self.dtype}",
                    where=f"output {self.name!r}",
                    fix="compare models with the same interface",
                )
        self.samples += 1
        self.elements += ref.size
        for r, c in _chunks(ref, cand):
            if self.kind == "float":
                self._add_floats(r.astype(np.float64), c.astype(np.float64))
            else:
                self._add_exact(r, c)
        if self.classes is not None:
            self._add_rows(ref, cand)

    def _add_floats(self, ref: Array, cand: Array) -> None:
        same = (ref == cand) | (np.isnan(ref) & np.isnan(cand))
        good_ref, good_cand = np.isfinite(ref), np.isfinite(cand)
        good = good_ref & good_cand
        self.equal += int(same.sum())
        self.bad_ref += int((~good_ref).sum())
        self.bad_cand += int((~good_cand).sum())
        self.mismatch += int((~same & ~good).sum())
        r, c = (ref, cand) if good.all() else (ref[good], cand[good])
        if not r.size:
            return
        error = r - c
        self.ref2 += float(r @ r)
        self.cand2 += float(c @ c)
        self.product += float(r @ c)
        self.error2 += float(error @ error)
        self.max_abs = max(self.max_abs, float(np.abs(error).max()))
        self.low, self.high = min(self.low, float(r.min())), max(self.high, float(r.max()))

    def _add_exact(self, ref: Array, cand: Array) -> None:
        same = ref == cand
        self.equal += int(same.sum())
        if self.kind == "integer" and not same.all():
            error = np.abs(ref.astype(np.float64) - cand.astype(np.float64)).max()
            # Different integers above 2^53 may become one float64.
            self.max_abs = max(self.max_abs, float(error), 1.0)

    def _add_rows(self, ref: Array, cand: Array) -> None:
        if not looks_like_logits(ref) or ref.shape[-1] != self.classes:
            self.classes = None
            return
        agree = ref.argmax(-1) == cand.argmax(-1)
        self.rows += agree.size
        self.agreeing += int(agree.sum())

    def result(self) -> OutputComparison:
        exact = self.equal / self.elements if self.elements else 1.0
        common = (self.name, self.dtype, self.samples, self.elements, exact)
        if self.kind != "float":
            return OutputComparison(
                *common, max_abs=self.max_abs if self.kind == "integer" else None
            )
        logits = self.classes is not None and self.rows > 0
        return OutputComparison(
            *common,
            nonfinite_reference=self.bad_ref,
            nonfinite_candidate=self.bad_cand,
            nonfinite_mismatch=self.mismatch,
            max_abs=math.inf if self.mismatch else self.max_abs,
            sqnr_db=-math.inf if self.mismatch else _decibel(self.ref2, self.error2),
            cosine=math.nan if self.mismatch else self._cosine(),
            max_relative=math.inf if self.mismatch else self._relative(),
            argmax_agreement=self.agreeing / self.rows if logits else None,
            argmax_rows=self.rows if logits else 0,
        )

    def _cosine(self) -> float:
        if self.error2 == 0.0:
            return 1.0
        norms = math.sqrt(self.ref2) * math.sqrt(self.cand2)
        return self.product / norms if norms else 0.0

    def _relative(self) -> float:
        if self.max_abs == 0.0:
            return 0.0
        scale = (self.high - self.low) or abs(self.high)
        return self.max_abs / scale if scale else math.inf


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal else -math.inf


def _kind(dtype: np.dtype[Any]) -> str:
    if is_float(dtype):
        return "float"
    if dtype.kind == "b":
        return "bool"
    return "string" if type_name(dtype) == "string" else "integer"


def _tensor(name: str, value: Any) -> Array:
    if not isinstance(value, np.ndarray | np.generic):
        raise DataError(
            f"a {type(value).__name__} can't be compared",
            where=f"output {name!r}",
            fix="compare tensor outputs; sequences and maps are not supported",
        )
    array = np.asarray(value)
    if array.dtype.kind == "c":
        raise DataError(
            "complex numbers can't be compared",
            where=f"output {name!r}",
            fix="compare the real and imaginary parts as outputs of their own",
        )
    return array


def _chunks(ref: Array, cand: Array) -> Iterator[tuple[Array, Array]]:
    """Flat slices, so that float64 copies stay small whatever the output's size."""
    flat_ref, flat_cand = ref.reshape(-1), cand.reshape(-1)
    for start in range(0, flat_ref.size, _CHUNK):
        yield flat_ref[start : start + _CHUNK], flat_cand[start : start + _CHUNK]


def _same_names(expected: Mapping[str, Any], got: Mapping[str, Any], who: str) -> None:
    if missing := [name for name in expected if name not in got]:
        raise DataError(f"{who} lacks output {missing[0]!r}", fix="run both with the same outputs")
    if extra := [name for name in got if name not in expected]:
        raise DataError(
            f"{who} has the further output {extra[0]!r}", fix="run both with the same outputs"
        )


def _json_number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
