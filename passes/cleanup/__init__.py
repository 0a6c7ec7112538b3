"""Clean-up passes in the order in which they run."""

CLEANUP: list[str] = [
    "qgraph.passes.cleanup.fold_constants:FoldConstants",
    "qgraph.passes.cleanup.drop_identities:DropIdentities",
    "qgraph.passes.cleanup.merge_transposes:MergeTransposes",
    "qgraph.passes.cleanup.merge_equal:MergeEqual",
    "qgraph.passes.cleanup.drop_dead:DropDead",
]
