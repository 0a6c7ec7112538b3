import pytest

from qgraph.passes.weight_only import write


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("QGRAPH_CACHE", "off")


@pytest.fixture
def captured(monkeypatch):
    """The float weights that the layers were to be replaced by."""
    seen = []
    original = write.fold_scales

    def spy(graph, quantized):
        seen.extend((each.weight.name, s) for each, s in quantized.solutions.items())
        return original(graph, quantized)

    monkeypatch.setattr("qgraph.passes.weight_only.quantize.fold_scales", spy)
    return seen
