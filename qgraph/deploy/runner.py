"""The script of a folder deployment: at most 40 lines, which need onnxruntime and numpy alone."""

import json

from qgraph.deploy.engines import openvino_properties, outside, provider_options
from qgraph.deploy.payload import Payload

_HEAD = '''\
"""Runs model.onnx: python run.py [INPUTS.npz [OUTPUTS.npz]]. Needs onnxruntime and numpy."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve().parent
'''
_PROVIDERS = """\
PROVIDERS = {providers}
THREADS = {threads}  # 0: one for each core


def open_model():
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    cpu = Path("/proc/cpuinfo")
    if not (cpu.exists() and "vnni" in cpu.read_text()):  # AVX2 overflows; VNNI would only be slower
        options.add_session_config_entry("session.x64quantprecision", "1")
    usable = [each for each in PROVIDERS if each[0] in ort.get_available_providers()]
    if usable[0] != PROVIDERS[0]:
        print("this onnxruntime has no", PROVIDERS[0][0], file=sys.stderr)
    return ort.InferenceSession(str(HERE / "model.onnx"), options, usable)
"""
_PLUGIN = """\
OPTIONS = {options}


def open_model():
    options = ort.SessionOptions()
    try:
        import {module} as plugin
    except ImportError:
        print("without {package} onnxruntime's own provider runs it", file=sys.stderr)
    else:
        ort.register_execution_provider_library("plugin", plugin.get_library_path())
        found = [each for each in ort.get_ep_devices() if each.ep_name == plugin.get_ep_name()]
        options.add_provider_for_devices([d for d in found if d.device.type.name == "CPU"], OPTIONS)
        options.intra_op_num_threads = 1  # idle threads would take time from the plugin's
    return ort.InferenceSession(str(HERE / "model.onnx"), options)
"""
_MAIN = """

def main(inputs=HERE / "example.npz", outputs=None):
    session = open_model()
    names = [each.name for each in session.get_outputs()]
    results = dict(zip(names, session.run(names, dict(np.load(inputs)))))
    print("ran in", session.get_providers()[0])
    for name, x in results.items():
        print(name, x.dtype, x.shape, x.reshape(-1)[:4])
    if outputs:
        np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def runner(payload: Payload) -> str:
    """Write the script for the engine that the artifact was made for."""
    engine = outside(payload.engine)
    if engine.plugin:
        properties = openvino_properties(payload.options)
        options = {"load_config": json.dumps({"CPU": properties})}
        package = engine.plugin.replace("_", "-")
        body = _PLUGIN.format(options=options, module=engine.plugin, package=package)
    else:
        providers = provider_options(engine, payload.own_options)
        body = _PROVIDERS.format(providers=providers, threads=payload.options.threads)
    return f"{_HEAD}{body}{_MAIN}"


def packages(payload: Payload) -> list[str]:
    """What the script needs, as pip spells it."""
    engine = outside(payload.engine)
    plain = "onnxruntime-gpu" if engine.gpu else "onnxruntime"
    plugin = [engine.plugin.replace("_", "-")] if engine.plugin else []
    return ["numpy", plain, *plugin]
