"""Neural processing units with 8-bit weights and 8- or 16-bit activations.

16-bit activations (`w8a16`) are what Qualcomm's HTP and similar units offer for models that 8 bits
hurt: uint16 with a zero point, weights in int8 per channel, biases in int32.
"""

from dataclasses import replace

from qgraph.encoding import Spec
from qgraph.target import WeightOnlyRules
from qgraph.targets.cpu import CPU
from qgraph.targets.mobile_arm import DEVICE_RULES
from qgraph.targets.numeric import NUMERIC

NPU = replace(
    CPU,
    name="npu",
    summary="neural processing unit: int8, or w8a16 with 16-bit activations",
    engines=(),
    rules=DEVICE_RULES,
    left_float=NUMERIC,
    half_ops={},
    precisions=("fp32", "int8", "w8a16"),
    weight_only=WeightOnlyRules(),
    activations={"w8a16": Spec("uint16", symmetric=False)},
    # 16 bits resolve all that was seen; clipping ranges, which 8 bits want, costs 17 dB on the
    # networks of models/digits (docs/targets.md).
    settings={"w8a16": ("calibrate.observer=minmax",)},
    no_engine="its compiler and device are the vendor's; qgraph has no connection to them",
)
