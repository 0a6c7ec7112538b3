"""Operators whose values are the reason that every target leaves them in float."""

NUMERIC = {
    "LayerNormalization": "normalisation needs float's range",
    "RMSNormalization": "normalisation needs float's range",
    "Softmax": "its results span many orders of magnitude",
    "Gelu": "float activation function; the values around it decide",
    "Sigmoid": "float activation function",
    "HardSwish": "float activation function",
}
