"""Recipes that ship with qgraph, as TOML files."""
