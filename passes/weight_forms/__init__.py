"""Graph forms of quantized weights: what stands in the place of a MatMul by a float constant.

A form is a function `(graph, node, result, **options) -> Value | Reject`. It adds nodes in front of
`node` and returns the value that replaces the node's, or says why there is none and leaves the graph
as it was. `put` puts that value in its place. Layers that share a weight must be given the same
result object: then its constants are stored once.
"""

from qgraph.graph import Graph, Node, Value
from qgraph.passes.fusions._constants import standing_in

# Every form, as `module:function`.
FORMS = [
    "qgraph.passes.weight_forms.dequantize:dequantize_linear",
    "qgraph.passes.weight_forms.matmul_nbits:matmul_nbits",
    "qgraph.passes.weight_forms.cast_scale:cast_scale",
    "qgraph.passes.weight_forms.bnb4:matmul_bnb4",
    "qgraph.passes.weight_forms.bnb4:block_codebook",
    "qgraph.passes.weight_forms.codebook:channel_codebook",
    "qgraph.passes.weight_forms.mixed_int8:mixed_int8",
    "qgraph.passes.weight_forms.gather:gather_table",
    "qgraph.passes.weight_forms.gather:gather_plain",
]


def put(graph: Graph, node: Node, value: Value) -> None:
    """Replace a node by the value that a form returned, which takes over the node's name.

    A Transpose that made the float weight of a table goes too, unless something else reads it.
    """
    sources = [source for source in node.inputs if source is not None]
    graph.replace(node.outputs[0], standing_in(value, node))
    graph.remove(node)
    made = value.producer()
    if made is not None and node.name:
        made.name = node.name
    for source in sources:
        producer = source.producer()
        if producer is not None and graph.is_standard(producer, "Transpose"):
            graph.remove_unread([producer])
