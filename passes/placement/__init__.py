"""Where Q/DQ go: the rules of a target, executed on a graph."""
