"""Operators that onnxruntime adds to ONNX's, in the order in which they are written: one a file."""

CONTRIB: list[str] = [
    "qgraph.passes.contrib.group_query_attention:GroupQueryAttention",
    # What is causal has become the former by now.
    "qgraph.passes.contrib.multi_head_attention:MultiHeadAttention",
    "qgraph.passes.contrib.skip_layernorm:SkipLayerNorm",
    "qgraph.passes.contrib.skip_rmsnorm:SkipRMSNorm",
]
