"""Where two operands of an Add meet, against networkx."""

import networkx as nx
from harness import model
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph import onnx_io
from qgraph.passes.placement.residual import Residuals


@st.composite
def graphs(draw):
    """Nodes Add and Exp in any wiring; each reads inputs or earlier nodes."""
    size = draw(st.integers(2, 14))
    lines, names = [], ["x", "z"]
    for index in range(size):
        sources = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2))
        op = "Add" if len(sources) == 2 else "Exp"
        lines.append(f"n{index} = {op}({', '.join(sources)})")
        names.append(f"n{index}")
    ends = "  ".join(f"o{i} = Neg(n{i})" for i in range(size))
    outputs = ", ".join(f"float[2] o{i}" for i in range(size))
    pair = draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=2, unique=True))
    return f"g (float[2] x, float[2] z) => ({outputs}) {{ {'  '.join(lines)}  {ends} }}", pair


@settings(max_examples=80, deadline=None)
@given(graphs())
def test_paths_meet_in_a_lowest_common_ancestor(case):
    text, (first, second) = case
    graph = onnx_io.load(model(text))
    nodes = {node.outputs[0].name: node for node in graph.nodes()}
    one, other = nodes[f"n{first}"], nodes[f"n{second}"]
    view = nx.DiGraph(graph.view())
    for value in graph.inputs:
        view.add_edges_from((value, node) for node in graph.readers(value))
    found, to_one, to_other = Residuals(graph, {})._meeting(one, other)
    ancestors = [nx.ancestors(view, node) | {node} for node in (one, other)]
    common = ancestors[0] & ancestors[1]
    if not common:
        assert found is None
        return
    assert found in common
    assert not common & nx.descendants(view, found), "a lower one is common, too"
    assert to_one == nx.shortest_path_length(view, found, one)
    assert to_other == nx.shortest_path_length(view, found, other)
