"""Integer-only accelerators such as Coral's Edge TPU: symmetric int8, fixed shapes, batch 1."""

from dataclasses import replace

from qgraph.encoding import Spec
from qgraph.target import WeightOnlyRules
from qgraph.targets.cpu import CPU
from qgraph.targets.mobile_arm import DEVICE_RULES
from qgraph.targets.numeric import NUMERIC

EDGE_TPU = replace(
    CPU,
    name="edge-tpu",
    summary="integer-only accelerator: int8, symmetric, batch 1, no dynamic axes",
    engines=(),
    rules=DEVICE_RULES,
    left_float=NUMERIC,
    half_ops={},
    precisions=("int8",),
    weight_only=WeightOnlyRules(),
    activation=Spec("int8", symmetric=True),
    fixed_shapes=True,
    batch=1,
    # Coral documentation, "TensorFlow models on the Edge TPU": about 8 MB of on-chip memory for
    # parameters; the rest is fetched from the host for every inference.
    memory=8 << 20,
    no_engine="its compiler and device are the vendor's; qgraph has no connection to them",
)
