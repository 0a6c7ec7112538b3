"""Networks with a failure planted in them."""

from pathlib import Path

import harness
import numpy as np
import onnx
from onnx import helper, numpy_helper

CNN = Path(__file__).resolve().parents[1] / "models" / "digits" / "digits_cnn.onnx"
WIDTH, CLASSES = 128, 10
# Far beyond the other weights, where the input is always 0: it does nothing, but its group's scale
# then rounds all others to 0 in 4 bits.
OUTLIER = 4.0


def ruined(folder: Path) -> tuple[Path, str]:
    """A classifier of digits of which one layer can't be rounded, and the layer's name.

    A middle convolution gets an output channel whose only large weight meets an input that a
    second, exact one takes out again: the sum of all is what it was, but a channel's scale is now
    a thousand times as coarse.
    """
    model = onnx.load(CNN)
    name = "/features/features.3/features.3.0/Conv"
    node = next(node for node in model.graph.node if node.name == name)
    weights = {w.name: w for w in model.graph.initializer}
    weight = numpy_helper.to_array(weights[node.input[1]]).copy()
    # Every row gets one huge tap that reads a padded corner of the image: it is always 0.
    weight = np.pad(weight, ((0, 0), (0, 1), (0, 0), (0, 0)))
    weight[:, -1] = 200.0
    weights[node.input[1]].CopyFrom(numpy_helper.from_array(weight, node.input[1]))
    zero = helper.make_node("Sub", ["lane", "lane"], ["zeros"], name="zeros")
    slices = [np.array(x, np.int64) for x in ([0], [1], [1])]
    names = ["starts", "ends", "axes"]
    for label, array in zip(names, slices, strict=True):
        model.graph.initializer.append(numpy_helper.from_array(array, label))
    take = helper.make_node("Slice", [node.input[0], *names], ["lane"], name="lane")
    join = helper.make_node("Concat", [node.input[0], "zeros"], ["wider"], name="wider", axis=1)
    node.input[0] = "wider"
    place = list(model.graph.node).index(node)
    for new in (join, zero, take):
        model.graph.node.insert(place, new)
    onnx.checker.check_model(model)
    path = folder / "ruined.onnx"
    onnx.save(model, path)
    return path, name


def tanh_stack(folder: Path, layers: int = 4, ruined: str = "g2") -> Path:
    """Tanh layers with residuals, of which 4 bits ruin one: its outliers meet inputs that are 0."""
    rng = np.random.default_rng(0)
    lines, weights = [], {}
    for i in range(layers):
        weight = rng.normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32)
        if f"g{i}" == ruined:
            weight[::16] = OUTLIER
        weights[f"w{i}"] = weight
        lines.append(f"m{i} = Mul (t{i}, mask)\n g{i} = MatMul (m{i}, w{i})\n h{i} = Tanh (g{i})\n"
                     f" t{i + 1} = Add (t{i}, h{i})")  # fmt: skip
    weights["mask"] = (np.arange(WIDTH) % 16 != 0).astype(np.float32)
    weights["last"] = rng.normal(0, 0.1, (WIDTH, CLASSES)).astype(np.float32)
    body = "\n".join(lines)
    proto = harness.model(
        f"agraph (float[N, {WIDTH}] t0) => (float[N, {CLASSES}] y) "
        f"{{ {body}\n y = MatMul (t{layers}, last) }}",
        weights,
    )
    return _saved(proto, folder / "net.onnx")


def cancelling(folder: Path, layers: int = 4, ruined: str = "g2") -> Path:
    """Tanh layers, of which half precision ruins one: a number of five digits comes and goes there."""
    rng = np.random.default_rng(0)
    width = 2048
    lines, weights = ["low = Mul (t0, zero)\n big = Add (low, far)"], {}
    for i in range(layers):
        weights[f"w{i}"] = rng.normal(0, 0.05, (width, width)).astype(np.float32)
        product = f"g{i}"
        lines.append(f"g{i} = MatMul (t{i}, w{i})")
        if product == ruined:
            lines.append(f"far{i} = Add (g{i}, big)\n back{i} = Sub (far{i}, big)")
            product = f"back{i}"
        lines.append(f"t{i + 1} = Tanh ({product})")
    weights |= {"zero": np.float32(0), "far": np.float32(10000)}
    weights["last"] = rng.normal(0, 0.1, (width, CLASSES)).astype(np.float32)
    body = "\n".join(lines)
    proto = harness.model(
        f"agraph (float[N, {width}] t0) => (float[N, {CLASSES}] y) "
        f"{{ {body}\n y = MatMul (t{layers}, last) }}",
        weights,
    )
    return _saved(proto, folder / "cancelling.onnx")


def outlier(folder: Path) -> tuple[Path, np.ndarray]:
    """Three layers and rows for them; one reads a column a thousand times as large, by weights of 0.

    So a step of 8 bits there is larger than what counts, and one of 16 is not.
    """
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32) for i in (0, 1)}
    weights["w1"][0] = 0
    weights["w2"] = rng.normal(0, 0.1, (WIDTH, CLASSES)).astype(np.float32)
    weights["size"] = np.where(np.arange(WIDTH) == 0, 1000, 1).astype(np.float32)
    proto = harness.model(
        f"""agraph (float[N, {WIDTH}] x) => (float[N, {CLASSES}] y) {{
            g0 = MatMul (x, w0)
            h0 = Tanh (g0)
            m0 = Mul (h0, size)
            g1 = MatMul (m0, w1)
            h1 = Tanh (g1)
            y = MatMul (h1, w2)
        }}""",
        weights,
    )
    return _saved(proto, folder / "outlier.onnx"), rng.normal(size=(240, WIDTH)).astype(np.float32)


def _saved(proto: onnx.ModelProto, path: Path) -> Path:
    """Name every node after its result, and write the file."""
    for node in proto.graph.node:
        node.name = node.output[0]
    onnx.save(proto, path)
    return path
