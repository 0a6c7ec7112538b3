"""Real models, built from wheels on PyPI or from a published architecture."""
