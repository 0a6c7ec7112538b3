"""ONNX constructs, each a model of few nodes: what TensorRT's parser and builder are asked about.

All of `CONSTRUCTS` build as they are, but for those of `REFUSED`, which names the linter's rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

HEAD = '<ir_version: {ir}, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'


@dataclass(frozen=True)
class Construct:
    """One model: `signature { body }` as ONNX text, with constants by name.

    Attributes:
        signature: Inputs and outputs.
        body: Nodes.
        weights: Constants.
        shapes: Shapes of inputs with dynamic axes, as `--shapes` takes them.
        opset: Version of ONNX's operators.
    """

    signature: str
    body: str
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    shapes: str = ""
    opset: int = 21

    @property
    def text(self) -> str:
        """The model as ONNX text."""
        head = HEAD.format(ir=10, opset=self.opset)
        return f"{head}net {self.signature} {{\n{self.body}\n}}"


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


IMAGE = "(float[1,16,8,8] x) => (float[1,16,8,8] y)"
ROWS = "(float[4,64] x) => (float[4,32] y)"
S = {"s": np.float32(0.02), "z": np.int8(0), "ws": np.float32(0.01)}


def codes(*shape, dtype=np.int8, seed=0):
    return np.random.default_rng(seed).integers(-7, 8, shape).astype(dtype)


def quantized_conv(body: str, signature: str = IMAGE, **weights) -> Construct:
    """A convolution whose data come through Q/DQ as `d`."""
    front = "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)\n"
    return Construct(signature, front + body, {**S, **weights})


def blocks(rows: int, block: int, dtype=ml_dtypes.int4, scale_type=np.float32, **options):
    """A product by weights in blocks of rows."""
    kind = "float16" if scale_type == np.float16 else "float"
    count = -(-rows // block)
    return Construct(
        f"({kind}[4,{rows}] x) => ({kind}[4,32] y)",
        f"w = DequantizeLinear<axis = 0, block_size = {block}>(codes, scale)  y = MatMul(x, w)",
        {"codes": codes(rows, 32, dtype=dtype), "scale": np.full((count, 32), 0.1, scale_type)},
        **options,
    )


C = Construct
CONSTRUCTS: dict[str, Construct] = {
    "conv": C(
        IMAGE, "y = Conv<pads = [1,1,1,1]>(x, w, b)", {"w": rand(16, 16, 3, 3), "b": rand(16)}
    ),
    "conv 1d": C(
        "(float[1,16,8] x) => (float[1,16,6] y)", "y = Conv(x, w)", {"w": rand(16, 16, 3)}
    ),
    "conv 3d": C(
        "(float[1,4,4,4,4] x) => (float[1,4,2,2,2] y)", "y = Conv(x, w)", {"w": rand(4, 4, 3, 3, 3)}
    ),
    "depthwise conv": C(
        IMAGE, "y = Conv<group = 16, pads = [1,1,1,1]>(x, w)", {"w": rand(16, 1, 3, 3)}
    ),
    "grouped conv": C(IMAGE, "y = Conv<group = 4>(x, w)", {"w": rand(16, 4, 1, 1)}),
    "dilated conv": C(
        IMAGE,
        'y = Conv<dilations = [2,2], auto_pad = "SAME_UPPER">(x, w)',
        {"w": rand(16, 16, 3, 3)},
    ),
    "transposed conv": C(
        "(float[1,16,8,8] x) => (float[1,8,16,16] y)",
        "y = ConvTranspose<strides = [2,2]>(x, w)",
        {"w": rand(16, 8, 2, 2)},
    ),
    "transposed conv with output padding": C(
        "(float[1,16,8,8] x) => (float[1,8,16,16] y)",
        "y = ConvTranspose<strides = [2,2], pads = [1,1,1,1], output_padding = [1,1]>(x, w)",
        {"w": rand(16, 8, 3, 3)},
    ),
    "transposed grouped conv": C(
        "(float[1,16,8,8] x) => (float[1,16,16,16] y)",
        "y = ConvTranspose<strides = [2,2], group = 16>(x, w)",
        {"w": rand(16, 1, 2, 2)},
    ),
    "int8 conv": quantized_conv(
        "w = DequantizeLinear(c, ws)  y = Conv(d, w, b)", c=codes(16, 16, 1, 1), b=rand(16)
    ),
    "int8 depthwise conv": quantized_conv(
        "w = DequantizeLinear(c, ws)  y = Conv<group = 16, pads = [1,1,1,1]>(d, w)",
        c=codes(16, 1, 3, 3),
    ),
    "int8 grouped conv": quantized_conv(
        "w = DequantizeLinear(c, ws)  y = Conv<group = 4>(d, w)", c=codes(16, 4, 1, 1)
    ),
    "int8 dilated conv": quantized_conv(
        "w = DequantizeLinear(c, ws)  y = Conv<dilations=[2,2]>(d, w)",
        "(float[1,16,8,8] x) => (float[1,16,4,4] y)",
        c=codes(16, 16, 3, 3),
    ),
    "int8 conv 1d": quantized_conv(
        "w = DequantizeLinear(c, ws)  y = Conv(d, w)",
        "(float[1,16,8] x) => (float[1,16,6] y)",
        c=codes(16, 16, 3),
    ),
    "int8 conv 3d": quantized_conv(
        "w = DequantizeLinear(c, ws)  y = Conv(d, w)",
        "(float[1,16,4,4,4] x) => (float[1,16,2,2,2] y)",
        c=codes(16, 16, 3, 3, 3),
    ),
    "int8 transposed conv": quantized_conv(
        "w = DequantizeLinear(c, ws)  y = ConvTranspose<strides = [2,2]>(d, w)",
        "(float[1,16,8,8] x) => (float[1,8,16,16] y)",
        c=codes(16, 8, 2, 2),
    ),
    "int8 transposed grouped conv": quantized_conv(
        "w = DequantizeLinear(c, ws)  y = ConvTranspose<strides = [2,2], group = 16>(d, w)",
        "(float[1,16,8,8] x) => (float[1,16,16,16] y)",
        c=codes(16, 1, 2, 2),
    ),
    "int8 transposed conv dilated": quantized_conv(
        "w = DequantizeLinear(c, ws)  y = ConvTranspose<dilations = [2,2]>(d, w)",
        "(float[1,16,8,8] x) => (float[1,8,10,10] y)",
        c=codes(16, 8, 2, 2),
    ),
    "int8 gemm": quantized_conv(
        "w = DequantizeLinear(c, ws)  y = Gemm<transB = 1>(d, w, b)",
        ROWS,
        c=codes(32, 64),
        b=rand(32),
    ),
    "int8 attention product": Construct(
        "(float[1,4,16,32] x, float[1,4,32,16] k) => (float[1,4,16,16] y)",
        "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  r = QuantizeLinear(k, s, z)  e = DequantizeLinear(r, s, z) y = MatMul(d, e)",
        S,
    ),
    "int8 residual": quantized_conv(
        "w = DequantizeLinear(c, ws)  m = Conv(d, w)  n = Relu(m)  q2 = QuantizeLinear(n, s, z)  d2 = DequantizeLinear(q2, s, z)\n"
        "w2 = DequantizeLinear(c2, ws)  o = Conv(d2, w2)  a = Add(o, d)  y = Relu(a)",
        c=codes(16, 16, 1, 1),
        c2=codes(16, 16, 1, 1, seed=1),
    ),
    "residual chain": C(
        IMAGE,
        "a = Conv(x, w)  b = Relu(a)  c = Add(b, x)  d = Conv(c, w)  e = Relu(d)  y = Add(e, c)",
        {"w": rand(16, 16, 1, 1)},
    ),
    "concat": C(
        "(float[1,8,4,4] x, float[1,8,4,4] z) => (float[1,16,4,4] y)", "y = Concat<axis = 1>(x, z)"
    ),
    "int8 concat": C(
        "(float[1,8,4,4] x, float[1,8,4,4] k) => (float[1,16,4,4] y)",
        "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  r = QuantizeLinear(k, s, z)  e = DequantizeLinear(r, s, z)\n"
        "t = Concat<axis = 1>(d, e)  q2 = QuantizeLinear(t, s, z) d2 = DequantizeLinear(q2, s, z) w = DequantizeLinear(c, ws)  y = Conv(d2, w)",
        {**S, "c": codes(16, 16, 1, 1)},
    ),
    "nearest resize": C(
        "(float[1,3,4,4] x) => (float[1,3,8,8] y)",
        'y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(x, , scales)',
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "linear resize to sizes": C(
        "(float[1,3,4,4] x) => (float[1,3,6,10] y)",
        'y = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(x, , , sizes)',
        {"sizes": ints(1, 3, 6, 10)},
    ),
    "cubic resize": C(
        "(float[1,3,4,4] x) => (float[1,3,8,8] y)",
        'y = Resize<mode = "cubic", cubic_coeff_a = -0.75>(x, , scales)',
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "attention with mask": C(
        "(float[1,4,6,8] q, float[1,4,6,8] k, float[1,4,6,8] v, float[1,1,6,6] m) => (float[1,4,6,8] y)",
        "t = Transpose<perm = [0,1,3,2]>(k)  s = MatMul(q, t)  c = Mul(s, f)  a = Add(c, m)\n"
        "p = Softmax<axis = -1>(a)  y = MatMul(p, v)",
        {"f": np.float32(0.35)},
    ),
    "attention operator": C(
        "(float[1,4,6,8] q, float[1,4,6,8] k, float[1,4,6,8] v) => (float[1,4,6,8] y)",
        "y = Attention(q, k, v)",
        opset=23,
    ),
    "rotary operator": C(
        "(float[1,4,6,8] x) => (float[1,4,6,8] y)",
        "y = RotaryEmbedding(x, c, s)",
        {"c": rand(1, 6, 4), "s": rand(1, 6, 4, seed=1)},
        opset=23,
    ),
    "layer normalization": C(
        "(float[2,6,64] x) => (float[2,6,64] y)",
        "y = LayerNormalization<axis = -1>(x, g, b)",
        {"g": rand(64), "b": rand(64)},
    ),
    "layer normalization of two axes": C(
        "(float[2,6,64] x) => (float[2,6,64] y)",
        "y = LayerNormalization<axis = -2>(x, g, b)",
        {"g": rand(6, 64), "b": rand(6, 64)},
    ),
    "layer normalization without bias": C(
        "(float[2,6,64] x) => (float[2,6,64] y)", "y = LayerNormalization(x, g)", {"g": rand(64)}
    ),
    "group normalization": C(
        "(float[1,16,8,8] x) => (float[1,16,8,8] y)",
        "y = GroupNormalization<num_groups = 4>(x, g, b)",
        {"g": rand(16), "b": rand(16)},
    ),
    "instance normalization": C(
        IMAGE, "y = InstanceNormalization(x, g, b)", {"g": rand(16), "b": rand(16)}
    ),
    "rms normalization": C(
        "(float[2,6,64] x) => (float[2,6,64] y)",
        "y = RMSNormalization(x, g)",
        {"g": rand(64)},
        opset=23,
    ),
    "batch normalization": C(
        IMAGE,
        "y = BatchNormalization(x, g, b, m, v)",
        {"g": rand(16), "b": rand(16), "m": rand(16), "v": abs(rand(16)) + 1},
    ),
    "gelu": C("(float[2,64] x) => (float[2,64] y)", "y = Gelu(x)"),
    "tanh gelu": C("(float[2,64] x) => (float[2,64] y)", 'y = Gelu<approximate = "tanh">(x)'),
    "erf": C("(float[2,64] x) => (float[2,64] y)", "y = Erf(x)"),
    "activations": C(
        "(float[2,64] x) => (float[2,64] y)",
        "a = HardSwish(x) b = Mish(a) c = Selu(b) d = Elu(c) e = Softplus(d) f = Softsign(e) g = HardSigmoid(f) h = ThresholdedRelu(g) i = Celu(h) j = LeakyRelu(i) y = PRelu(j, p)",
        {"p": rand(64)},
    ),
    "clip without a minimum": C(
        "(float[2,64] x) => (float[2,64] y)", "y = Clip(x, , m)", {"m": np.float32(6)}
    ),
    "gemm with transB": C(
        ROWS, "y = Gemm<transB = 1>(x, w, b)", {"w": rand(32, 64), "b": rand(32)}
    ),
    "gemm with alpha, beta and transA": C(
        "(float[64,4] x) => (float[4,32] y)",
        "y = Gemm<transA = 1, alpha = 0.5, beta = 2.0>(x, w, b)",
        {"w": rand(64, 32), "b": rand(32)},
    ),
    "gemm without bias": C(ROWS, "y = Gemm(x, w)", {"w": rand(64, 32)}),
    "matmul vector": C("(float[64] x) => (float[32] y)", "y = MatMul(x, w)", {"w": rand(64, 32)}),
    "int4 blocks of 64": blocks(256, 64),
    "int4 blocks of 128": blocks(256, 128),
    "int4 blocks of 32": blocks(256, 32),
    "int4 blocks with float16 scales": blocks(256, 128, scale_type=np.float16),
    "int8 blocks": blocks(256, 64, dtype=np.int8),
    "float16 boundaries": C(
        "(float[4,64] x) => (float[4,32] y)",
        "h = Cast<to = 10>(x)  m = MatMul(h, w)  n = Relu(m)  y = Cast<to = 1>(n)",
        {"w": rand(64, 32).astype(np.float16)},
    ),
    "bfloat16": C(
        "(float[4,64] x) => (float[4,32] y)",
        "h = Cast<to = 16>(x)  v = Cast<to = 16>(w)  m = MatMul(h, v)  y = Cast<to = 1>(m)",
        {"w": rand(64, 32)},
    ),
    "float16 softmax": C("(float16[2,64] x) => (float16[2,64] y)", "y = Softmax(x)"),
    "log softmax": C("(float[2,64] x) => (float[2,64] y)", "y = LogSoftmax(x)"),
    "dynamic batch": C(
        "(float[N,64] x) => (float[N,32] y)",
        "y = MatMul(x, w)",
        {"w": rand(64, 32)},
        shapes="x:1x64,8x64,32x64",
    ),
    "dynamic image": C(
        "(float[N,3,H,W] x) => (float[N,8,h,w] y)",
        "y = Conv<strides = [2,2]>(x, w)",
        {"w": rand(8, 3, 3, 3)},
        shapes="x:1x3x32x32,2x3x64x64,4x3x96x128",
    ),
    "reshape by computed shape": C(
        "(float[N,4,16] x) => (float[N,64] y)",
        "t = Shape<start = 0, end = 1>(x)  u = Concat<axis = 0>(t, m)  y = Reshape(x, u)",
        {"m": ints(-1)},
        shapes="x:1x4x16,2x4x16,8x4x16",
    ),
    "reshape with 0": C(
        "(float[2,4,16] x) => (float[2,64] y)", "y = Reshape(x, u)", {"u": ints(0, -1)}
    ),
    "if": C(
        "(bool c, float[4] x) => (float[4] y)",
        "y = If(c) <then_branch = t () => (float[4] a) { a = Relu(x) }, else_branch = e () => (float[4] b) { b = Neg(x) }>",
    ),
    "loop": C(
        "(float[4] x) => (float[4] y)",
        "y = Loop(n, t, x) <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] e) { d = Identity(c)  e = Add(a, a) }>",
        {"n": np.int64(3), "t": np.bool_(True)},
    ),
    "scan": C(
        "(float[3,4] x, float[4] s) => (float[4] f, float[3,4] y)",
        "f, y = Scan<num_scan_inputs = 1, body = b (float[4] a, float[4] v) => (float[4] o, float[4] p) { o = Add(a, v)  p = Relu(o) }>(s, x)",
    ),
    "einsum": C(
        "(float[2,3,4] x, float[2,4,5] z) => (float[2,3,5] y)",
        'y = Einsum<equation = "bij,bjk->bik">(x, z)',
    ),
    "einsum with ellipsis": C(
        "(float[2,3,4] x, float[2,4,5] z) => (float[2,3,5] y)",
        'y = Einsum<equation = "...ij,...jk->...ik">(x, z)',
    ),
    "einsum of three": C(
        "(float[2,3] x, float[3,4] z, float[4,5] u) => (float[2,5] y)",
        'y = Einsum<equation = "ij,jk,kl->il">(x, z, u)',
    ),
    "einsum diagonal": C("(float[3,3] x) => (float[3] y)", 'y = Einsum<equation = "ii->i">(x)'),
    "where": C("(bool[4] c, float[4] x, float[4] z) => (float[4] y)", "y = Where(c, x, z)"),
    "gather": C("(float[8,4] x, int64[2,3] i) => (float[2,3,4] y)", "y = Gather(x, i)"),
    "gather elements": C(
        "(float[8,4] x, int64[8,4] i) => (float[8,4] y)", "y = GatherElements(x, i)"
    ),
    "gather nd": C("(float[8,4] x, int64[3,1] i) => (float[3,4] y)", "y = GatherND(x, i)"),
    "gather nd with batch": C(
        "(float[2,8,4] x, int64[2,3,1] i) => (float[2,3,4] y)", "y = GatherND<batch_dims = 1>(x, i)"
    ),
    "scatter nd": C(
        "(float[8,4] x, int64[3,1] i, float[3,4] u) => (float[8,4] y)", "y = ScatterND(x, i, u)"
    ),
    "scatter elements": C(
        "(float[8,4] x, int64[2,4] i, float[2,4] u) => (float[8,4] y)",
        "y = ScatterElements(x, i, u)",
    ),
    "scatter elements adding": C(
        "(float[8,4] x, int64[2,4] i, float[2,4] u) => (float[8,4] y)",
        'y = ScatterElements<reduction = "add">(x, i, u)',
    ),
    "top k": C(
        "(float[2,16] x) => (float[2,3] y, int64[2,3] i)", "y, i = TopK(x, k)", {"k": ints(3)}
    ),
    "top k smallest unsorted": C(
        "(float[2,16] x) => (float[2,3] y, int64[2,3] i)",
        "y, i = TopK<largest = 0, sorted = 0>(x, k)",
        {"k": ints(3)},
    ),
    "arg max": C("(float[2,16] x) => (int64[2] y)", "y = ArgMax<axis = 1, keepdims = 0>(x)"),
    "arg max last": C(
        "(float[2,16] x) => (int64[2,1] y)", "y = ArgMax<axis = 1, select_last_index = 1>(x)"
    ),
    "non max suppression": C(
        "(float[1,16,4] x, float[1,2,16] s) => (int64[N,3] y)",
        "y = NonMaxSuppression(x, s, n, t, u)",
        {"n": ints(5), "t": np.array([0.5], np.float32), "u": np.array([0.1], np.float32)},
    ),
    "non zero": C("(float[2,16] x) => (int64[2,N] y)", "y = NonZero(x)"),
    "one hot": C(
        "(int64[4] x) => (float[4,8] y)",
        "y = OneHot(x, d, v)",
        {"d": np.int64(8), "v": np.array([0, 1], np.float32)},
    ),
    "trilu": C("(float[4,4] x) => (float[4,4] y)", "y = Trilu(x)"),
    "cumulative sum": C("(float[4,4] x) => (float[4,4] y)", "y = CumSum(x, a)", {"a": np.int64(1)}),
    "expand": C("(float[1,4] x) => (float[3,4] y)", "y = Expand(x, u)", {"u": ints(3, 1)}),
    "tile": C("(float[2,4] x) => (float[4,8] y)", "y = Tile(x, u)", {"u": ints(2, 2)}),
    "constant of shape": C(
        "(float[2,4] x) => (float[2,4] y)", "t = Shape(x)  c = ConstantOfShape(t)  y = Add(x, c)"
    ),
    "pad constant": C(
        "(float[1,3,4,4] x) => (float[1,3,6,6] y)",
        "y = Pad(x, p)",
        {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)},
    ),
    "pad reflect": C(
        "(float[1,3,4,4] x) => (float[1,3,6,6] y)",
        'y = Pad<mode = "reflect">(x, p)',
        {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)},
    ),
    "pad edge": C(
        "(float[1,3,4,4] x) => (float[1,3,6,6] y)",
        'y = Pad<mode = "edge">(x, p)',
        {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)},
    ),
    "pad wrap": C(
        "(float[1,3,4,4] x) => (float[1,3,6,6] y)",
        'y = Pad<mode = "wrap">(x, p)',
        {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)},
    ),
    "pad negative": C(
        "(float[1,3,4,4] x) => (float[1,3,2,4] y)",
        "y = Pad(x, p, , a)",
        {"p": ints(-1, -1), "a": ints(2)},
    ),
    "slice": C(
        "(float[4,8] x) => (float[4,4] y)",
        "y = Slice(x, a, b, c)",
        {"a": ints(2), "b": ints(6), "c": ints(1)},
    ),
    "slice without axes": C(
        "(float[4,8] x) => (float[2,4] y)", "y = Slice(x, a, b)", {"a": ints(1, 2), "b": ints(3, 6)}
    ),
    "slice backwards": C(
        "(float[4,8] x) => (float[4,8] y)",
        "y = Slice(x, a, b, c, d)",
        {"a": ints(7), "b": ints(-9), "c": ints(1), "d": ints(-1)},
    ),
    "split by num_outputs": C(
        "(float[4,8] x) => (float[4,4] y, float[4,4] z)",
        "y, z = Split<axis = 1, num_outputs = 2>(x)",
    ),
    "split uneven": C(
        "(float[4,7] x) => (float[4,4] y, float[4,3] z)",
        "y, z = Split<axis = 1, num_outputs = 2>(x)",
    ),
    "split by sizes": C(
        "(float[4,7] x) => (float[4,4] y, float[4,3] z)",
        "y, z = Split<axis = 1>(x, s)",
        {"s": ints(4, 3)},
    ),
    "squeeze without axes": C("(float[1,4,1] x) => (float[4] y)", "y = Squeeze(x)"),
    "reduce without axes": C("(float[2,4] x) => (float y)", "y = ReduceMean<keepdims = 0>(x)"),
    "reduce many": C(
        "(float[2,4] x) => (float[2,1] y)",
        "a = ReduceL2(x, i)  b = ReduceLogSumExp(x, i)  c = ReduceProd(x, i) d = Add(a, b)  y = Add(c, d)",
        {"i": ints(1)},
    ),
    "average pool": C(
        IMAGE, "y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1>(x)"
    ),
    "average pool ceil": C(
        "(float[1,16,8,8] x) => (float[1,16,4,4] y)",
        "y = AveragePool<kernel_shape = [3,3], strides = [2,2], ceil_mode = 1>(x)",
    ),
    "max pool ceil": C(
        "(float[1,16,8,8] x) => (float[1,16,4,4] y)",
        "y = MaxPool<kernel_shape = [3,3], strides = [2,2], ceil_mode = 1>(x)",
    ),
    "global average pool": C(
        "(float[1,16,8,8] x) => (float[1,16,1,1] y)", "y = GlobalAveragePool(x)"
    ),
    "lp pool": C(
        "(float[1,16,8,8] x) => (float[1,16,7,7] y)", "y = LpPool<kernel_shape = [2,2]>(x)"
    ),
    "depth to space": C(
        "(float[1,16,8,8] x) => (float[1,4,16,16] y)", "y = DepthToSpace<blocksize = 2>(x)"
    ),
    "space to depth": C(
        "(float[1,16,8,8] x) => (float[1,64,4,4] y)", "y = SpaceToDepth<blocksize = 2>(x)"
    ),
    "grid sample": C(
        "(float[1,3,8,8] x, float[1,4,4,2] g) => (float[1,3,4,4] y)", "y = GridSample(x, g)"
    ),
    "roi align": C(
        "(float[1,3,8,8] x, float[2,4] r, int64[2] i) => (float[2,3,2,2] y)",
        "y = RoiAlign<output_height = 2, output_width = 2>(x, r, i)",
    ),
    "gru": C(
        "(float[5,1,4] x) => (float[5,1,1,8] y)",
        "y, h = GRU<hidden_size = 8, linear_before_reset = 1>(x, w, r, b)",
        {"w": rand(1, 24, 4), "r": rand(1, 24, 8), "b": rand(1, 48)},
    ),
    "lstm both ways": C(
        "(float[5,1,4] x) => (float[5,2,1,8] y)",
        'y, h, c = LSTM<hidden_size = 8, direction = "bidirectional">(x, w, r)',
        {"w": rand(2, 32, 4), "r": rand(2, 32, 8)},
    ),
    "rnn": C(
        "(float[5,1,4] x) => (float[5,1,1,8] y)",
        "y, h = RNN<hidden_size = 8>(x, w, r)",
        {"w": rand(1, 8, 4), "r": rand(1, 8, 8)},
    ),
    "lstm layout": C(
        "(float[1,5,4] x) => (float[1,5,1,8] y)",
        "y, h, c = LSTM<hidden_size = 8, layout = 1>(x, w, r)",
        {"w": rand(1, 32, 4), "r": rand(1, 32, 8)},
    ),
    "pow": C("(float[4] x) => (float[4] y)", "y = Pow(x, p)", {"p": np.float32(2)}),
    "pow int exponent": C("(float[4] x) => (float[4] y)", "y = Pow(x, p)", {"p": np.int64(2)}),
    "mod": C("(int64[4] x) => (int64[4] y)", "y = Mod(x, p)", {"p": np.int64(3)}),
    "fmod": C("(float[4] x) => (float[4] y)", "y = Mod<fmod = 1>(x, p)", {"p": np.float32(3)}),
    "logic": C(
        "(bool[4] x, bool[4] z) => (bool[4] y)",
        "a = And(x, z)  b = Or(a, z)  c = Xor(b, z)  y = Not(c)",
    ),
    "compare": C(
        "(float[4] x, float[4] z) => (bool[4] y)",
        "a = LessOrEqual(x, z)  b = GreaterOrEqual(x, z)  c = Equal(x, z) d = And(a, b) y = And(d, c)",
    ),
    "max of three": C("(float[4] x, float[4] z, float[4] u) => (float[4] y)", "y = Max(x, z, u)"),
    "dropout": C("(float[4] x) => (float[4] y)", "y = Dropout(x)"),
    "cast to uint8": C("(float[4] x) => (uint8[4] y)", "y = Cast<to = 2>(x)"),
    "uint8 input": C("(uint8[1,3,4,4] x) => (float[1,3,4,4] y)", "y = Cast<to = 1>(x)"),
    "int8 add": C("(int8[4] x) => (int8[4] y)", "y = Add(x, x)"),
    "int16": C("(float[4] x) => (float[4] y)", "a = Cast<to = 5>(x)  y = Cast<to = 1>(a)"),
    "double": C("(double[4] x) => (double[4] y)", "y = Add(x, x)"),
    "det": C("(float[2,2] x) => (float y)", "y = Det(x)"),
    "bitshift": C("(uint8[4] x) => (uint8[4] y)", 'y = BitShift<direction = "LEFT">(x, x)'),
    "unique": C("(float[4] x) => (float[N] y)", "y = Unique(x)"),
    "compress": C("(float[4] x, bool[4] c) => (float[N] y)", "y = Compress(x, c)"),
    "hardmax": C("(float[2,4] x) => (float[2,4] y)", "y = Hardmax(x)"),
    "qlinear conv": C(
        "(float[1,3,4,4] f) => (float[1,4,4,4] g)",
        "x = QuantizeLinear(f, s, z)  y = QLinearConv(x, s, z, w, s, z, s, z)  g = DequantizeLinear(y, s, z)",
        {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 3, 1, 1), np.int8)},
    ),
    "conv integer": C(
        "(uint8[1,3,4,4] x) => (int32[1,4,4,4] y)",
        "y = ConvInteger(x, w)",
        {"w": np.ones((4, 3, 1, 1), np.uint8)},
    ),
    "matmul integer": C(
        "(uint8[4,64] x) => (int32[4,32] y)",
        "y = MatMulInteger(x, w)",
        {"w": np.ones((64, 32), np.uint8)},
    ),
    "dynamic quantize": C(
        "(float[4,64] x) => (uint8[4,64] y, float s, uint8 z)", "y, s, z = DynamicQuantizeLinear(x)"
    ),
    "matmul nbits": C(
        ROWS,
        "y = com.microsoft.MatMulNBits<K = 64, N = 32, bits = 4, block_size = 32>(x, w, s)",
        {"w": np.zeros((32, 2, 16), np.uint8), "s": abs(rand(32 * 2)) + 1},
    ),
    "int32 bias": quantized_conv(
        "b = DequantizeLinear(bq, bs)  y = Conv(d, w, b)",
        w=rand(16, 16, 1, 1),
        bq=np.arange(16, dtype=np.int32),
        bs=np.float32(0.001),
    ),
    "zero point": C(
        IMAGE,
        "q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)",
        {"s": np.float32(0.02), "z": np.int8(3)},
    ),
    "uint8 activation": C(
        IMAGE,
        "q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)",
        {"s": np.float32(0.02), "z": np.uint8(0)},
    ),
    "int16 activation": C(
        IMAGE,
        "q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)",
        {"s": np.float32(0.02), "z": np.int16(0)},
    ),
    "channel activation": C(
        IMAGE,
        "q = QuantizeLinear<axis = 1>(x, s, z)  y = DequantizeLinear<axis = 1>(q, s, z)",
        {"s": np.full(16, 0.02, np.float32), "z": np.zeros(16, np.int8)},
    ),
    "string": C("(string[4] x) => (string[4] y)", "y = Identity(x)"),
    "sequence": C(
        "(float[4] x) => (float[4] y)",
        "s = SequenceConstruct(x, x)  i = Constant<value_int = 0>() y = SequenceAt(s, i)",
    ),
    "split to sequence": C("(float[4] x) => (seq(float[1]) y)", "y = SplitToSequence(x)"),
    "ragged blocks": blocks(576, 128),
    "blocks with zero points": C(
        "(float[4,256] x) => (float[4,32] y)",
        "w = DequantizeLinear<axis = 0, block_size = 64>(codes, scale, zp)  y = MatMul(x, w)",
        {
            "codes": codes(256, 32, dtype=ml_dtypes.int4),
            "scale": np.full((4, 32), 0.1, np.float32),
            "zp": np.ones((4, 32), ml_dtypes.int4),
        },
    ),
    "uint4 blocks": blocks(256, 64, dtype=ml_dtypes.uint4),
    "int4 blocks along N": C(
        "(float[4,256] x) => (float[4,128] y)",
        "w = DequantizeLinear<axis = 1, block_size = 64>(codes, scale)  y = MatMul(x, w)",
        {
            "codes": codes(256, 128, dtype=ml_dtypes.int4),
            "scale": np.full((256, 2), 0.1, np.float32),
        },
    ),
    "int4 per channel": C(
        "(float[4,256] x) => (float[4,128] y)",
        "w = DequantizeLinear<axis = 1>(codes, scale)  y = MatMul(x, w)",
        {"codes": codes(256, 128, dtype=ml_dtypes.int4), "scale": np.full((128,), 0.1, np.float32)},
    ),
    "int8 weight alone": C(
        "(float[4,256] x) => (float[4,128] y)",
        "w = DequantizeLinear<axis = 1>(codes, scale)  y = MatMul(x, w)",
        {"codes": codes(256, 128), "scale": np.full((128,), 0.1, np.float32)},
    ),
    "fp8": C(
        "(float[4,256] x) => (float[4,128] y)",
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(codes, s) y = MatMul(d, w)",
        {
            "codes": codes(256, 128).astype(ml_dtypes.float8_e4m3fn),
            "s": np.float32(0.1),
            "z": np.zeros((), ml_dtypes.float8_e4m3fn),
        },
    ),
    "fp8 conv": C(
        IMAGE,
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(codes, s) y = Conv(d, w)",
        {
            "codes": codes(16, 16, 1, 1).astype(ml_dtypes.float8_e4m3fn),
            "s": np.float32(0.1),
            "z": np.zeros((), ml_dtypes.float8_e4m3fn),
        },
    ),
    "e5m2": C(
        "(float[4,256] x) => (float[4,256] y)",
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        {"s": np.float32(0.1), "z": np.zeros((), ml_dtypes.float8_e5m2)},
    ),
    "computed scale": C(
        "(float[4,256] x, float s) => (float[4,256] y)",
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        {"z": np.int8(0)},
    ),
    "slice of fewer starts": C(
        "(float[4,8] x) => (float[2,8] y)", "y = Slice(x, a, b)", {"a": ints(1), "b": ints(3)}
    ),
    "vector by a stack": C(
        "(float[4] x) => (float[2,5] y)", "y = MatMul(x, w)", {"w": rand(2, 4, 5)}
    ),
    "attention with a past": C(
        "(float[1,4,6,8] q, float[1,4,6,8] k, float[1,4,6,8] v, float[1,4,3,8] a, float[1,4,3,8] b) => "
        "(float[1,4,6,8] y, float[1,4,9,8] c, float[1,4,9,8] d)",
        "y, c, d = Attention<is_causal = 1>(q, k, v, , a, b)",
        opset=23,
    ),
    "attention of float16": C(
        "(float16[1,4,6,64] q, float16[1,4,6,64] k, float16[1,4,6,64] v) => (float16[1,4,6,64] y)",
        "y = Attention(q, k, v)",
        opset=23,
    ),
    "layer normalization whose mean is read": C(
        "(float[2,64] x) => (float[2,64] y, float[2,1] m)",
        "y, m = LayerNormalization(x, g)",
        {"g": rand(64)},
    ),
    "crop": C(
        "(float[2,5] x) => (float[2,3] y)", "y = CenterCropPad<axes = [1]>(x, s)", {"s": ints(3)}
    ),
    "dilated pooling": C(
        "(float[1,16,8,8] x) => (float[1,16,6,6] y)",
        "y = MaxPool<kernel_shape = [2,2], dilations = [2,2]>(x)",
    ),
    "pooling with indices": C(
        "(float[1,16,8,8] x) => (float[1,16,7,7] y, int64[1,16,7,7] i)",
        "y, i = MaxPool<kernel_shape = [2,2]>(x)",
    ),
    "third power pooling": C(
        "(float[1,16,8,8] x) => (float[1,16,7,7] y)", "y = LpPool<kernel_shape = [2,2], p = 3>(x)"
    ),
    "antialiased resize": C(
        "(float[1,3,8,8] x) => (float[1,3,4,4] y)",
        'y = Resize<mode = "linear", antialias = 1>(x, , s)',
        {"s": np.array([1, 1, 0.5, 0.5], np.float32)},
    ),
    "resize that keeps the aspect": C(
        "(float[1,3,4,4] x) => (float[1,3,8,8] y)",
        'y = Resize<keep_aspect_ratio_policy = "not_larger">(x, , , s)',
        {"s": ints(1, 3, 8, 8)},
    ),
    "uint8 sum": C("(uint8[4] x) => (uint8[4] y)", "y = Add(x, x)"),
    "odd number of int4 codes": C(
        "(float[1,3] x) => (float[1,3] y)",
        "w = DequantizeLinear(c, s)  y = Add(x, w)",
        {"c": codes(1, 3, dtype=ml_dtypes.int4), "s": np.float32(1)},
    ),
    "cast to int4": C("(float[4] x) => (float[4] y)", "a = Cast<to = 22>(x)  y = Cast<to = 1>(a)"),
    "custom operator": C("(float[4] x) => (float[4] y)", "y = com.microsoft.FastGelu(x)"),
}

# By the linter's rule.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "attention operator",
            "attention with a past",
            "crop",
            "layer normalization whose mean is read",
        ),
        "written-out",
    ),
    "slice of fewer starts": "slice-axes",
    "vector by a stack": "vector-product",
    **dict.fromkeys(("non max suppression", "non zero", "roi align"), "plugin"),
    **dict.fromkeys(("int16", "int16 activation", "string"), "element-type"),
    **dict.fromkeys(
        (
            "det",
            "bitshift",
            "unique",
            "compress",
            "dynamic quantize",
            "sequence",
            "split to sequence",
            "custom operator",
        ),
        "operator",
    ),
    **dict.fromkeys(
        (
            "scatter elements adding",
            "dilated pooling",
            "pooling with indices",
            "third power pooling",
            "antialiased resize",
            "resize that keeps the aspect",
            "uint8 sum",
            "odd number of int4 codes",
            "cast to int4",
        ),
        "operator-form",
    ),
    **dict.fromkeys(("qlinear conv", "conv integer", "matmul integer"), "integer-operator"),
    "matmul nbits": "matmul-nbits",
    "int32 bias": "int32-bias",
    **dict.fromkeys(("zero point", "blocks with zero points"), "zero-point"),
    **dict.fromkeys(("uint8 activation", "uint4 blocks"), "unsigned-codes"),
    "channel activation": "channel-activation",
    "e5m2": "element-type",
    "ragged blocks": "ragged-blocks",
}
# The builder takes them, and computes something else than the model says, or nothing faster.
TAKEN_ANYWAY = ("uint8 activation", "channel activation")
