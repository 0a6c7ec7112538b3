"""What a search found out, step by step."""

from typing import Any

from qgraph.search.costs import Costs, Engine
from qgraph.search.mixes import Mixes
from qgraph.search.refine import Refined
from qgraph.search.sensitivity import Sensitivity
from qgraph.search.whole import Round


class Found:
    """What a search found out."""

    def __init__(self, space: Mixes) -> None:
        """Start with nothing."""
        self.space = space
        self.problem: Any = None
        self.sensitivity: Sensitivity | None = None
        self.costs: Costs | None = None
        self.costs_engine: Engine | None = None
        self.refined: Refined | None = None
        self.first: Round | None = None
