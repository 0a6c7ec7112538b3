"""Run every benchmark, or those named: `python -m benchmarks [graph_passes large_model ...]`.

These run only when named: `peers` installs gigabytes of other packages, `weights` wants a decoder and
data, `cuda_weights` and `cuda_models` a GPU, `margins` photographs; `contrib` compiles decoders of 135 M
parameters.
"""

import runpy
import sys

ALL = (
    *("graph_passes", "large_model", "weight_stack", "weight_forms", "cpu_int8"),
    *("horizontal_matmul", "accuracy", "calibration", "promise"),
)
NAMED = ("peers", "weights", "cuda_weights", "cuda_models", "contrib", "margins")


def main() -> int:
    """Run the benchmarks one after the other, so that none disturbs another."""
    wanted = sys.argv[1:] or list(ALL)
    unknown = sorted(set(wanted) - {*ALL, *NAMED})
    if unknown:
        there = ", ".join(ALL + NAMED)
        print(f"no benchmark {', '.join(unknown)}; there are: {there}", file=sys.stderr)
        return 2
    for name in wanted:
        print(f"\n== {name}")
        sys.argv = [name]
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
