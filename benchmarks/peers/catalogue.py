"""The peers: what to install, and which of their documented recipes to run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A package that quantizes ONNX models.

    Attributes:
        name: For `--peers`; also the name of its file in recipes/.
        requirements: For pip, with lower bounds.
        packages: Distributions whose versions the report names.
        recipes: Rows of the table: the variants that recipes/NAME.py knows.
        named: Recipes that run only when named: for other models, or of minutes.
        aimed: The engine the placement is made for, where that is not onnxruntime's CPU provider.
    """

    name: str
    requirements: tuple[str, ...]
    packages: tuple[str, ...]
    recipes: tuple[str, ...]
    named: tuple[str, ...] = ()
    aimed: str = ""


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "onnxruntime",
            ("onnxruntime>=1.31", "onnx>=1.21", "sympy>=1.13"),
            ("onnxruntime",),
            ("minmax", "percentile", "entropy"),
            named=("dynamic", "dynamic-per-channel"),
        ),
        Peer(
            "modelopt",
            ("nvidia-modelopt[onnx]>=0.47",),
            ("nvidia-modelopt",),
            ("max", "entropy"),
            aimed="TensorRT",
        ),
        Peer(
            "nncf",
            ("nncf>=3.4", "onnx>=1.21", "onnxruntime>=1.24", "sympy>=1.13"),
            ("nncf",),
            ("default", "mixed", "accurate", "folded"),
            named=("transformer",),
            aimed="OpenVINO",
        ),
        Peer(
            "quark",
            ("amd-quark>=0.13", "torch>=2.8", "onnxruntime>=1.24,<=1.28"),
            ("amd-quark",),
            ("A8W8", "U8W8", "U8W8-cle", "U8W8-bias", "XINT8"),
            named=("U8W8-adaround", "U8W8-adaquant"),
            aimed="AMD's NPU",
        ),
        Peer(
            "aimet",
            ("aimet-onnx>=2.42",),
            ("aimet-onnx",),
            ("minmax", "tf_enhanced", "cle"),
            named=("adaround",),
            aimed="Qualcomm's NPU",
        ),
        Peer(
            "olive",
            # Olive 0.13 imports requests and does not name it.
            ("olive-ai>=0.13", "onnxruntime>=1.31", "sympy>=1.13", "requests>=2.32"),
            ("olive-ai",),
            ("static",),
            named=("dynamic",),
        ),
    )
}
