"""fp8 against fp16 in onnxruntime's CUDA provider; see `__main__`."""
