"""The list of targets: one file and one line each."""

TARGETS = [
    "qgraph.targets.cpu:CPU",
    "qgraph.targets.cpu:CPU_X86",
    "qgraph.targets.cuda:CUDA",
    "qgraph.targets.tensorrt:TENSORRT",
    "qgraph.targets.tensorrt_ep:TENSORRT_EP",
    "qgraph.targets.gpu_nvidia:GPU_NVIDIA",
    "qgraph.targets.mobile_arm:MOBILE_ARM",
    "qgraph.targets.edge_tpu:EDGE_TPU",
    "qgraph.targets.npu:NPU",
]
