"""Whole models for target `cuda` against plain onnxruntime on one GPU; see `__main__`."""
