"""Makes the model take raw images or integer codes, and hand out integer codes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qgraph.context import Context
from qgraph.data.image_options import ImageOptions
from qgraph.encoding import INTEGERS, Encoding, Spec, encode_range
from qgraph.errors import DataError, UsageError
from qgraph.graph import Graph, Node, Value
from qgraph.interface import Codes, InputType, Interface, Layout, OutputType, Pixels
from qgraph.io_options import image_input
from qgraph.passes.collect import extremes
from qgraph.passes.image_input import take_pixels
from qgraph.pipeline import Pass, PassReport
from qgraph.target import Target

# What `auto` hands out: 8 bits make logits tie (docs/io.md has the measurement).
_WIDE = {"uint8": "uint16", "int8": "int16"}
# How far beyond what was seen outputs may go, in parts of that: 16 bits can spare half of their
# codes, 8 bits can't.
_HEADROOM = {8: 0.1, 16: 0.5}
# Since when QuantizeLinear gives 16 bits.
_OPSET_16 = 21


@dataclass(frozen=True)
class QuantizeIO(Pass):
    """Change the types of inputs and outputs, as `--io` asks.

    With an `[images]` table in the recipe and a float image as the only input, the model takes
    raw pixels and does what the table says itself. Otherwise float inputs take codes of the
    encoding that calibration found for them, or of the minimum and maximum over the data. Outputs
    are quantized last, from their minimum and maximum over the data with headroom, so that
    nothing seen is clipped. Integer inputs and outputs stay as they are.

    Scales and zero points go to the manifest and to the model's metadata, as
    `qgraph.input.NAME.scale` and so on.

    Attributes:
        inputs: `float` leaves them alone.
        outputs: `auto` is float for float inputs, else 16-bit integers of the same sign.
        layout: Axes of raw images.
        headroom: How far beyond the data's range outputs may go, in parts of it; None for 0.5
            with 16 bits and 0.1 with 8.
    """

    inputs: InputType = "float"
    outputs: OutputType = "auto"
    layout: Layout = "NHWC"
    headroom: float | None = None

    name: ClassVar[str] = "quantize_io"
    gives: ClassVar[frozenset[str]] = frozenset({"io"})
    numerics = "rounding"

    def __post_init__(self) -> None:
        """Refuse a headroom that makes no sense."""
        if self.headroom is not None and not 0 <= self.headroom <= 100:
            raise UsageError(f"headroom is {self.headroom}", fix="give 0 to 100")

    @property
    def active(self) -> bool:
        """Whether it would change anything."""
        return self.inputs != "float" or self.output_type != "float"

    @property
    def output_type(self) -> str:
        """Type of outputs, `auto` resolved."""
        return _WIDE.get(self.inputs, "float") if self.outputs == "auto" else self.outputs

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite inputs and outputs and leave `facts.io`.

        Raises:
            UsageError: Inputs are no images and there is no data to find their ranges with.
            DataError: The data makes an output NaN or infinite.
        """
        work = _Work(self, graph, context)
        if work.active:
            work.look()
            work.take_inputs()
            work.hand_out()
            graph.model.metadata_props.update(work.interface.metadata())
        graph.facts.io = work.interface
        return work.report


@dataclass(eq=False)
class _Work:
    options: QuantizeIO
    graph: Graph
    context: Context
    report: PassReport = field(default_factory=PassReport)
    interface: Interface = field(default_factory=Interface)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images: ImageOptions | None = getattr(self.context.recipe, "images", None)
        self.pixels = image_input(self.graph.signature(), self.images)
        self.active = self.options.active
        # Before names change.
        known: Mapping[str, Encoding] = self.graph.facts.encodings or {}
        # Codes in floating point are none that a caller could hand in.
        self.encodings = {name: each for name, each in known.items() if each.dtype in INTEGERS}

    def look(self) -> None:
        """Find the ranges of outputs, and of inputs that have no encoding, on the data."""
        wanted = [v for v in self._outputs() if not self.graph.is_constant(v)]
        if self.options.inputs != "float" and not self.pixels:
            wanted += [v for v in self._inputs() if v.name not in self.encodings]
        names = list(dict.fromkeys(v.name or "" for v in wanted))
        if not names:
            return
        if self.context.data is None or not getattr(self.context.data, "rereadable", True):
            line = "outputs stay in float: their ranges need calibration data"
            again = "" if self.context.data is None else " that can be read again"
            self.report.warnings.append(line + again)
            return
        for sample in extremes(self.graph, names, self.context.data):
            for name, (low, high) in sample.items():
                before = self.ranges.get(name, (float(low), float(high)))
                self.ranges[name] = min(before[0], float(low)), max(before[1], float(high))

    # -- inputs ------------------------------------------------------------------------------

    def _inputs(self) -> list[Value]:
        return [v for v in self.graph.inputs if v.dtype == ir.DataType.FLOAT]

    def take_inputs(self) -> None:
        if self.options.inputs == "float":
            return
        if self.pixels:
            assert self.images is not None
            value = self.graph.inputs[0]
            pixels = Pixels(self.options.inputs, self.options.layout, self.images)
            target = self.context.target
            bytes_first = not isinstance(target, Target) or target.activation.dtype == "uint8"
            take_pixels(self.graph, value, pixels, self.report, bytes_first=bytes_first)
            self.interface.inputs[value.name or ""] = pixels
            return
        for value in self._inputs():
            self._take_codes(value)

    def _take_codes(self, value: Value) -> None:
        name = value.name or ""
        found = self.encodings.get(name)
        if found is None and name in self.ranges:
            found = encode_range(*self.ranges[name], Spec("uint8", symmetric=False))
        if found is None:
            raise DataError(f"input {name!r} was empty in every sample", fix="pass other data")
        wanted = _as_type(found, self.options.inputs)
        if wanted is None:
            line = f"input {name!r} stays in float: it is computed in {found.dtype}"
            self.report.warnings.append(line)
            return
        readers = [(use.node, use.idx) for use in value.uses()]
        encoded = _constants(self.graph, name, wanted)
        dequantize = self.graph.insert(
            "DequantizeLinear",
            [value, *encoded],
            before=next(iter(self.graph.main)),
            name=f"{name}_dequantize",
            like=value,
        )
        value.type = ir.TensorType(_ir_type(wanted.dtype))
        for node, index in readers:
            if wanted.dtype == found.dtype and _quantizes_to(self.graph, node, found):
                # It would give back the codes that now come in.
                self.graph.replace(node.outputs[0], value)
                self.graph.remove_unread([node])
            else:
                self.graph.set_input(node, index, dequantize.outputs[0])
        self.graph.remove_unread([dequantize])
        self.interface.inputs[name] = Codes(wanted)
        self.report.did(f"{name}: takes {wanted.dtype} codes")

    # -- outputs -----------------------------------------------------------------------------

    def _outputs(self) -> list[Value]:
        if self.options.output_type == "float":
            return []
        return [v for v in self.graph.outputs if v.dtype == ir.DataType.FLOAT]

    def hand_out(self) -> None:
        wanted = self.options.output_type
        if wanted.endswith("16") and self.graph.opset < _OPSET_16 and self._outputs():
            line = f"outputs stay in float: {wanted} needs opset {_OPSET_16}"
            self.report.warnings.append(f"{line}, the model has {self.graph.opset}")
            return
        for value in self._outputs():
            name = value.name or ""
            if name not in self.ranges or value.is_graph_input():
                self.report.refuse(name, "no range was seen: constant, empty or an input")
                continue
            encoding = self._output_encoding(*self.ranges[name], wanted)
            self._quantize_output(value, name, encoding)
            self.interface.outputs[name] = Codes(encoding)
            self.report.did(f"{name}: hands out {wanted} codes")

    def _output_encoding(self, low: float, high: float, wanted: str) -> Encoding:
        bits = INTEGERS[wanted][2].itemsize * 8
        headroom = self.options.headroom
        part = (_HEADROOM[bits] if headroom is None else headroom) * (high - min(low, 0.0))
        # A side that nothing was seen on is as likely a bound: probabilities, distances.
        low, high = low - part * (low < 0), high + part * (high > 0)
        return encode_range(low, high, Spec(wanted, symmetric=False))

    def _quantize_output(self, value: Value, name: str, encoding: Encoding) -> None:
        producer = value.producer()
        assert producer is not None
        source, step = value, encoding
        if self._reads_other_codes(producer, encoding.dtype):
            # onnxruntime would take the QuantizeLinear for its own, find another type than the
            # inputs have, and compute a Gemm in float for it: 0.5 ms instead of nothing.
            divide = self.graph.insert(
                "Div",
                [value, self.graph.constant(f"{name}_io_step", encoding.scale)],
                after=producer,
                name=f"{name}_steps",
                like=value,
            )
            source, producer = divide.outputs[0], divide
            step = replace(encoding, scale=np.ones((), np.float32))
        quantize = self.graph.insert(
            "QuantizeLinear",
            [source, *_constants(self.graph, name, step)],
            after=producer,
            name=f"{name}_quantize",
        )
        codes = quantize.outputs[0]
        codes.type = ir.TensorType(_ir_type(encoding.dtype))
        codes.shape = None if value.shape is None else value.shape.copy()
        outputs = self.graph.main.outputs
        for index, output in enumerate(list(outputs)):
            if output is value:
                outputs[index] = codes
        value.name, codes.name = self.graph.fresh(f"{name}_float"), name

    def _reads_other_codes(self, node: Node, dtype: str) -> bool:
        """Whether a node runs in integers, on inputs of another type than `dtype`."""
        for value in node.inputs[:1]:
            source = None if value is None else value.producer()
            if source is not None and self.graph.is_standard(source, "DequantizeLinear"):
                codes = source.inputs[0]
                return codes is None or codes.dtype != _ir_type(dtype)
        return False


def _as_type(found: Encoding, dtype: str) -> Encoding | None:
    """The same encoding with codes of another sign; None where it has another width."""
    if INTEGERS[found.dtype][2].itemsize != INTEGERS[dtype][2].itemsize or found.scale.ndim:
        return None
    shift = INTEGERS[dtype][0] - INTEGERS[found.dtype][0]
    return Encoding(dtype, found.scale, np.asarray(found.zero_point + shift), found.block)


def _quantizes_to(graph: Graph, node: ir.Node, encoding: Encoding) -> bool:
    """Whether a node is a QuantizeLinear with that encoding."""
    if not graph.is_standard(node, "QuantizeLinear") or len(node.inputs) < 3:
        return False
    scale, zero = graph.array(node.inputs[1]), graph.array(node.inputs[2])
    return (
        scale is not None
        and zero is not None
        and scale.size == zero.size == 1
        and float(scale.reshape(())) == float(encoding.scale)
        and int(zero.reshape(())) == int(encoding.zero_point)
        and zero.dtype == INTEGERS[encoding.dtype][2]
    )


def _constants(graph: Graph, name: str, encoding: Encoding) -> list[Value]:
    """Scale and zero point as constants."""
    zero = encoding.zero_point.astype(INTEGERS[encoding.dtype][2])
    return [
        graph.constant(f"{name}_io_scale", encoding.scale),
        graph.constant(f"{name}_io_zero_point", zero),
    ]


def _ir_type(dtype: str) -> ir.DataType:
    return ir.DataType[dtype.upper()]
