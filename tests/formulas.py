"""Writes formulas as ONNX nodes, in every order that `choose` can ask for."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Formula:
    """Nodes and constants of one model under construction; values are named by strings.

    Args:
        choose: Gets a number n of ways to write something and returns which, 0 to n - 1.
        dtype: Element type of inputs and constants.
        opset: Opset of the model.
        constant_rank: Axes of one-element constants.
    """

    def __init__(
        self,
        choose: Callable[[int], int] = lambda n: 0,
        dtype: Any = np.float32,
        opset: int = 21,
        constant_rank: int = 0,
    ) -> None:
        self.choose, self.dtype, self.opset, self.rank = (
            choose,
            np.dtype(dtype),
            opset,
            constant_rank,
        )
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def const(self, value: Any, dtype: Any = None) -> str:
        array = np.asarray(value, dtype or self.dtype)
        if array.ndim == 0 and dtype is None:
            array = array.reshape([1] * self.rank)
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def either(self, op_type: str, a: str, b: str) -> str:
        """Write a commutative operator, in one of the two orders."""
        return self.op(op_type, *((a, b) if self.choose(2) == 0 else (b, a)))

    def scaled(self, x: str, by: float) -> str:
        """Write `by * x` as a product or as a quotient."""
        if self.choose(2) == 0:
            return self.either("Mul", x, self.const(by))
        return self.op("Div", x, self.const(1 / by))

    def product(self, *factors: str, by: float | None = None) -> str:
        """Write the product of all factors and `by`, multiplied in some order."""
        left: list[str | float] = [*factors] if by is None else [*factors, by]
        while len(left) > 1:
            first = left.pop(self.choose(len(left)))
            second = left.pop(self.choose(len(left)))
            if isinstance(first, float):
                first, second = second, first
            if isinstance(second, float):
                left.append(self.scaled(str(first), second))
            else:
                left.append(self.either("Mul", str(first), second))
        return str(left[0])

    def mean(self, x: str, axes: Sequence[int] | None, keepdims: int = 1) -> str:
        more = {} if keepdims else {"keepdims": 0}
        if axes is None:
            return self.op("ReduceMean", x, **more)
        if self.opset < 18:
            return self.op("ReduceMean", x, axes=list(axes), **more)
        return self.op("ReduceMean", x, self.const(list(axes), np.int64), **more)

    def model(
        self,
        inputs: dict[str, Sequence[int | str]],
        *outputs: str,
        types: dict[str, Any] | None = None,
    ) -> onnx.ModelProto:
        """Close the graph; inputs and outputs have `dtype` unless `types` names another."""

        def info(name: str, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
            dtype = np.dtype((types or {}).get(name, self.dtype))
            return helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(dtype), shape
            )

        tensors = [numpy_helper.from_array(a, n) for n, a in self.constants.items()]

        def close(shapes: dict[str, Any]) -> onnx.ModelProto:
            graph = helper.make_graph(
                self.nodes,
                "formula",
                [info(n, s) for n, s in inputs.items()],
                [info(o, shapes.get(o)) for o in outputs],
                tensors,
            )
            return helper.make_model(
                graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10
            )

        inferred = onnx.shape_inference.infer_shapes(close({}), data_prop=True)
        found = {
            v.name: [
                d.dim_value or d.dim_param or f"free{i}"
                for i, d in enumerate(v.type.tensor_type.shape.dim)
            ]
            for v in inferred.graph.output
        }
        proto = close(found)
        onnx.checker.check_model(proto, full_check=True)
        return proto
