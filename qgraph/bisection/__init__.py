"""Which pass and which units of a compile lost the accuracy, and why: `qgraph bisect`.

`run` is the story, `scores` says what is lost, `passes` scores the graph behind every pass, `units`
every unit in integers, `minimal` finds the smallest set that must stay in float, `causes` says what
is wrong with each of them, on arrays.
"""

from qgraph.bisection.run import Bisection, bisect

__all__ = ["Bisection", "bisect"]
