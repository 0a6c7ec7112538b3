"""Products in float8e4m3fn by a kernel of onnxruntime's CUDA provider; see `quantize`."""
