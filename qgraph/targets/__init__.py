"""The list of targets: one file and one line each."""

TARGETS = [
    "qgraph.targets.cpu:CPU",
]
