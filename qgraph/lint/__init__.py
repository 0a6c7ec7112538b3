"""The legality linter: what an engine would refuse, fall back on or not fuse, before it is built.

One file an engine, which holds its rules as data. `RULE_SETS` names them; `qgraph.lint.check` runs
them, `qgraph.lint.fix` applies the rewrites that they name.
"""

from qgraph.lint.check import Linted, lint
from qgraph.lint.fix import Fixed, fix
from qgraph.lint.rule import SEVERITIES, Finding, Rule, RuleSet

__all__ = ["SEVERITIES", "Finding", "Fixed", "Linted", "Rule", "RuleSet", "fix", "lint"]

RULE_SETS = [
    "qgraph.lint.onnxruntime_cpu:RULES",
    "qgraph.lint.openvino:RULES",
    "qgraph.lint.tensorrt:RULES",
]
