"""NVIDIA TensorRT and TensorRT-RTX: building engines, keeping them, opening them.

`backend` is the door. Behind it: `library` (which of the two, and where they differ), `options`
(what a recipe's [tensorrt] table takes), `profiles` and `configure` (how they reach a build),
`build`, `progress`, `timing_cache`, `plan` (the file and its record), `refusals` (the parser's),
`session`, `layers` (what an engine says about itself).
"""
