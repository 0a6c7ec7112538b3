"""Three small networks trained on scikit-learn's digits, their ONNX files and their data."""
