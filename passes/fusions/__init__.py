"""Fusions in the order in which they run: one file a pattern."""

FUSIONS: list[str] = [
    # Formulas that are one operator. First, because the fusions below would fold their constants,
    # as the 3 of clip(x + 3, 0, 6) / 6, into a neighbour. RMSNorm after LayerNorm, whose second
    # half looks like it; HardSwish after HardSigmoid, for x * hardsigmoid(x).
    "qgraph.passes.fusions.layernorm:LayerNorm",
    "qgraph.passes.fusions.rmsnorm:RMSNorm",
    "qgraph.passes.fusions.gelu:Gelu",
    "qgraph.passes.fusions.silu:Silu",
    "qgraph.passes.fusions.hardsigmoid:HardSigmoid",
    "qgraph.passes.fusions.hardswish:HardSwish",
    "qgraph.passes.fusions.mish:Mish",
    # Around Conv and Linear. Constant arithmetic goes before BatchNormalization folding, so that
    # chains of both end in one node.
    "qgraph.passes.fusions.gemm_factors:GemmFactors",
    "qgraph.passes.fusions.pad_conv:PadConv",
    "qgraph.passes.fusions.conv_scale:ConvScale",
    "qgraph.passes.fusions.conv_batchnorm:ConvBatchNorm",
    "qgraph.passes.fusions.batchnorm_conv:BatchNormConv",
    "qgraph.passes.fusions.matmul_scale:MatMulScale",
    "qgraph.passes.fusions.matmul_add_gemm:MatMulAddGemm",
    "qgraph.passes.fusions.linear_batchnorm:LinearBatchNorm",
    # Behind activations, whose decomposed forms may end in a Mul or Div by a constant.
    "qgraph.passes.fusions.scale_matmul:ScaleMatMul",
    "qgraph.passes.fusions.horizontal_matmul:HorizontalMatMul",
    # Findings that leave the graph as it is, so last.
    "qgraph.passes.fusions.attention:MarkAttention",
    "qgraph.passes.fusions.units:MarkUnits",
]
