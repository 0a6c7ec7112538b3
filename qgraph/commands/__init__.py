"""The commands of `qgraph`: one file a command, registered in `qgraph.cli`.

A command's file holds `command`, whose signature is its usage and whose docstring its help, and
`EXAMPLES`, shown below the help. Heavy imports stay inside functions, so that `qgraph --help`
and shell completion answer at once.
"""
