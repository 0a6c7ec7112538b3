"""int4 and int8 weights against fp16 in onnxruntime's CUDA provider; see `__main__`."""
