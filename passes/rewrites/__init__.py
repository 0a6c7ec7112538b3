"""Rewrites for `qgraph lint --fix`, in the order in which they run: one file a rewrite.

Each makes a model legal, or faster, for an engine that takes another form of the same numbers. A
compile runs only those that its target names in `lowering`.
"""

REWRITES: list[str] = [
    # Spellings first; the definitions of operators may hold some.
    "qgraph.passes.rewrites.expand_functions:ExpandFunctions",
    "qgraph.passes.rewrites.slice_axes:SliceAxes",
    "qgraph.passes.rewrites.vector_matmul:VectorMatMul",
    # Then everything that becomes Q/DQ, since the later ones read only that form.
    "qgraph.passes.rewrites.integer_to_qdq:IntegerToQDQ",
    "qgraph.passes.rewrites.qlinear_to_qdq:QLinearToQDQ",
    "qgraph.passes.rewrites.unpack_matmul_nbits:UnpackMatMulNBits",
    "qgraph.passes.rewrites.pack_matmul_nbits:PackMatMulNBits",
    "qgraph.passes.rewrites.unpack_matmul_bnb4:UnpackMatMulBnb4",
    "qgraph.passes.rewrites.float_bias:FloatBias",
    "qgraph.passes.rewrites.symmetric_weights:SymmetricWeights",
    # Shortens the way from Q to DQ, so that the two behind it see both ends.
    "qgraph.passes.rewrites.dequantize_early:DequantizeEarly",
    "qgraph.passes.rewrites.symmetric_activations:SymmetricActivations",
    "qgraph.passes.rewrites.signed_to_unsigned:SignedToUnsigned",
]
