"""com.microsoft.GemmFloat8 as onnxruntime's CUDA provider has it, for ONNX's reference evaluator.

Only a GPU runs the operator itself. This one computes in float64 and refuses what the kernel refuses.
"""

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

TYPES = {1: np.float32, 10: np.float16, 16: ml_dtypes.bfloat16}


class GemmFloat8(OpRun):
    op_domain = "com.microsoft"

    def _run(self, a, b, c=None, scale_a=None, scale_b=None, transA=0, transB=0, dtype=1):  # noqa: N803
        assert (transA, transB) == (0, 1) and c is None
        assert a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1]
        assert a.dtype == b.dtype == ml_dtypes.float8_e4m3fn
        assert a.shape[1] % 16 == 0 and b.shape[0] % 16 == 0
        for scale in (scale_a, scale_b):
            assert scale.dtype == np.float32 and scale.shape == (1,)
        sums = a.astype(np.float64) @ b.astype(np.float64).T
        return ((sums * scale_a[0] * scale_b[0]).astype(TYPES[dtype]),)


def run_kernels(proto, feeds):
    names = [o.name for o in proto.graph.output]
    found = ReferenceEvaluator(proto, new_ops=[GemmFloat8]).run(names, dict(feeds))
    return dict(zip(names, found, strict=True))


def operators(proto: onnx.ModelProto):
    return Counter(node.op_type for node in proto.graph.node)


def rounded(x):
    """The number of float8e4m3fn nearest to each: 4 digits from 2^-6 on, steps of 2^-9 below."""
    x = np.asarray(x, np.float64)
    exponent = np.floor(np.log2(np.maximum(np.abs(x), 2.0**-6)))
    step = 2.0 ** (exponent - 3)
    return np.clip(np.rint(x / step) * step, -448, 448)
