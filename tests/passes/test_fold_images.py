import numpy as np
import onnx
import pytest
from harness import check_fires, check_stays, interface, model, ops

from qgraph.context import Context
from qgraph.data.image_options import ImageOptions
from qgraph.passes.fold_images import FoldImages
from qgraph.recipe import Recipe

MEAN = ImageOptions(mean=(0.485, 0.456, 0.406), std=(0.2, 0.3, 0.4))


def net(
    body: str = "y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", shape: str = "2,3,6,6", group: int = 1
) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((6, 3 // group, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(6).astype(np.float32),
    }
    text = f"g (float[{shape}] x) => (float[n,c,h,w_] y) {{ {body} }}"
    return model(
        text, {k: v for k, v in arrays.items() if {f"{k},", f"({k})", f"{k})"} & set(body.split())}
    )


def context(images: ImageOptions | None = MEAN) -> Context:
    return Context(recipe=Recipe(images=images))


@pytest.mark.parametrize("last", [False, True])
def test_levels_the_channels_and_keeps_the_numbers(last: bool) -> None:
    proto = net()
    if last:
        proto = net("t = Transpose <perm = [0, 3, 1, 2]> (x) y = Conv (t, w, b)", "2,6,6,3")
    # A second run finds a Mul in front of the Conv and leaves it.
    out = check_fires(FoldImages(), proto, changed=1, context=context())
    assert interface(out) == interface(proto)
    assert ops(out)[-2:] == ["Mul", "Conv"]
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in out.graph.initializer}
    ratio = arrays[next(n for n in out.graph.node if n.op_type == "Mul").input[1]]
    # What (x - mean) / std becomes: one slope for all channels.
    np.testing.assert_allclose(ratio.ravel() / np.array(MEAN.std), 1 / 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (net("c = Relu (x) y = Conv (c, w, b)"), "not read by a single Conv"),
        (net("y = Conv <group = 3> (x, w, b)", group=3), "groups"),
        (net("v = Exp (w) y = Conv (x, v, b)"), "no constant weight"),
    ],
    ids=["other", "groups", "computed"],
)
def test_leaves_others_alone(proto: onnx.ModelProto, reason: str) -> None:
    check_stays(FoldImages(), proto, reason, context())


@pytest.mark.parametrize("images", [None, ImageOptions(std=(0.5,) * 3), ImageOptions(std=(2.0,))])
def test_nothing_to_do(images: ImageOptions | None) -> None:
    check_stays(FoldImages(), net(), context=context(images))


def test_channels_that_dont_fit_are_refused() -> None:
    w = np.ones((2, 4, 3, 3), np.float32)
    proto = model("g (float[2,4,6,6] x) => (float[n,c,h,v] y) { y = Conv (x, w) }", {"w": w})
    check_stays(FoldImages(), proto, "don't fit", context())
