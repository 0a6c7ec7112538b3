"""Weight-only quantization of linear layers, one after the other, each on what those before give."""
