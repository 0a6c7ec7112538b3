"""Data fitted to the inputs of what a command runs."""

from typing import TYPE_CHECKING, Any

from qgraph.errors import UsageError

if TYPE_CHECKING:
    from qgraph.data import DataSet
    from qgraph.runnable import Runnable
    from qgraph.runtime.backend import Session


def data_for(
    session: "Session",
    source: str,
    samples: int | None,
    recipe: str | None,
    run: "Runnable",
) -> "DataSet":
    """Open data for a session; images are prepared as the recipe, or the artifact's, says.

    Raises:
        DataError: It can't be read or does not fit.
        UsageError: The recipe is wrong.
    """
    from qgraph.data import open_data
    from qgraph.interface import raw_images
    from qgraph.kv_cache import cache_axes_of
    from qgraph.runnable import image_options

    # What an artifact that takes pixels leaves to be done comes before what its recipe says.
    images = raw_images(run.io) or image_options(run, recipe)
    caches = cache_axes_of(run.model, session.inputs)
    return open_data(source, session.inputs, images=images, caches=caches, samples=samples)


def batch_of(data: "DataSet", size: int) -> dict[str, Any]:
    """Return the first `size` samples as one batch.

    Raises:
        UsageError: The model fixes another batch size, or its inputs have no batch axis.
        DataError: There are fewer samples.
    """
    from qgraph.errors import DataError

    if size > 1 and not data.layout.free:
        raise UsageError(
            f"--batch {size}: the model's inputs have no free batch axis",
            fix="leave --batch out, or export the model with a dynamic batch axis",
        )
    feeds = next(iter(data.batches(size)))
    first = next(iter(feeds.values()))
    if size > 1 and first.shape[0] != size:
        raise DataError(
            f"--batch {size} needs as many samples of one shape, there are {first.shape[0]}",
            fix="give more data or a smaller batch",
        )
    return dict(feeds)
