"""Which kernels the installed onnxruntime has: its own registry, by operator, version and type."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir

from qgraph.graph import ONNX_DOMAINS, Node
from qgraph.lint.view import View, op_name

# Domains whose operators onnxruntime brings itself.
DOMAINS = ONNX_DOMAINS | {
    "ai.onnx.ml",
    "ai.onnx.preview.training",
    "ai.onnx.training",
    "com.microsoft",
    "com.microsoft.nchwc",
    "com.ms.internal.nhwc",
}
_OPEN = 2**31 - 1
# As the registry spells element types; the others are spelled as ONNX spells them.
_SPELLED = {"FLOAT": "float", "DOUBLE": "double", "BFLOAT16": "bfloat16", "FLOAT16": "float16"}
# Handled before kernels are looked for: constants become initializers.
_NO_KERNEL = frozenset({"Constant", "If", "Loop", "Scan"})


@dataclass(frozen=True)
class Missing:
    """A kernel that is not there.

    Attributes:
        what: What is missing.
        casts: Whether onnxruntime puts Casts to float32 around the node instead.
    """

    what: str
    casts: bool = False


def unknown_domain(view: View, node: Node) -> str | None:
    """Check of a rule: a node that neither onnxruntime nor the model defines."""
    if node.domain in DOMAINS or (node.domain, node.op_type) in view.functions:
        return None
    return f"{node.op_type} of domain {node.domain!r}"


def kernels_known() -> str | None:
    """Say why kernels can't be looked up, or None."""
    return None if _registry() else "onnxruntime is not installed: its kernels were not looked up"


def kernel_missing(view: View, node: Node) -> Missing | None:
    """Return what kernel a node lacks; None where it has one, or where nobody can know."""
    registry = _registry()
    if not registry or node.domain not in DOMAINS or node.op_type in _NO_KERNEL:
        return None
    if (node.domain, node.op_type) in view.functions:
        return None
    domain = "" if node.domain in ONNX_DOMAINS else node.domain
    version = view.graph.opset if not domain else view.graph.model.opset_imports.get(domain, 1)
    schema = _schema(domain, node.op_type, version)
    since = version if schema is None else schema.since_version
    kernels = [
        types
        for first, last, types in registry.get((domain, node.op_type), ())
        # A kernel without a last version is for the operator as it was then, and for no newer one.
        if first == since or (first < since <= last != _OPEN)
    ]
    if schema is not None and (schema.has_function or schema.has_context_dependent_function):
        return None  # onnxruntime writes it out in other operators
    if not kernels:
        return Missing(f"no kernel for {op_name(node)}, version {version}")
    if schema is None:
        return None
    types = _types(view, node, schema)
    if any(_fits(kernel, types) for kernel in kernels):
        return None
    what = ", ".join(sorted({name.removeprefix("tensor(").rstrip(")") for name in types.values()}))
    halves = {"tensor(float16)": "tensor(float)"}
    widened = {key: halves.get(name, name) for key, name in types.items()}
    casts = widened != types and any(_fits(kernel, widened) for kernel in kernels)
    return Missing(f"{op_name(node)} of {what}", casts)


def _fits(kernel: dict[str, list[str]], types: dict[str, str]) -> bool:
    return all(name in kernel.get(key, [name]) for key, name in types.items())


def _types(view: View, node: Node, schema: Any) -> dict[str, str]:
    """Return the element type of each type parameter whose inputs or outputs have a known one."""
    found: dict[str, str] = {}
    for formals, values in ((schema.inputs, node.inputs), (schema.outputs, node.outputs)):
        for index, value in enumerate(values):
            formal = formals[min(index, len(formals) - 1)] if formals else None
            if (
                value is None
                or formal is None
                or isinstance(value.type, ir.SequenceType | ir.OptionalType)
            ):
                continue
            dtype = view.dtype(value)
            if dtype is not None and "(" not in formal.type_str:
                found.setdefault(formal.type_str, f"tensor({_spelled(dtype)})")
    return found


def _spelled(dtype: ir.DataType) -> str:
    return _SPELLED.get(dtype.name, dtype.name.lower())


@cache
def _schema(domain: str, op_type: str, version: int) -> Any:
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


@cache
def _registry() -> dict[tuple[str, str], list[tuple[int, int, dict[str, list[str]]]]]:
    """Return (first version, last version, types) of every CPU kernel, by domain and operator."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        kernels = state.get_all_opkernel_def()
    except (ImportError, AttributeError):
        return {}
    found = defaultdict(list)
    for kernel in kernels:
        if kernel.provider == "CPUExecutionProvider":
            first, last = kernel.version_range
            found[kernel.domain, kernel.op_name].append((first, last, kernel.type_constraints))
    return dict(found)
