"""What planner and repairs need to know about single layers and activation functions."""

from qgraph.graph import Graph, Node


def weight_axis(node: Node) -> int:
    """Axis of the weight that runs over output channels."""
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if Graph.attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "MatMul" else 0


def clip_bounds(graph: Graph, node: Node) -> tuple[float, float] | None:
    """Bounds of a Relu or Clip with constant bounds; None for anything else."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    bounds = [float("-inf"), float("inf")]
    for index in (1, 2):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            continue
        bound = graph.scalar(value)
        if bound is None:
            return None
        bounds[index - 1] = bound
    return bounds[0], bounds[1]


def product_sizes(graph: Graph, node: Node) -> tuple[int | None, int | None, int | None]:
    """Rows M, depth K and width N of a Gemm or MatMul; None where a length is not known.

    With a weight of two axes all leading axes of the data are rows of one product.
    """
    one, other = (graph.shape(value) for value in node.inputs[:2])
    if not one or not other or len(other) < 2:
        return None, None, None
    transposed = graph.attribute(node, "transB", 0) if node.op_type == "Gemm" else 0
    depth, width = (_length(other[i]) for i in ((-1, -2) if transposed else (-2, -1)))
    rows: int | None = 1
    for each in one[:-1] if len(other) == 2 else one[-2:-1]:
        length = _length(each)
        rows = None if rows is None or length is None else rows * length
    return rows, depth, width


def _length(axis: int | str | None) -> int | None:
    return axis if isinstance(axis, int) else None
