"""Parses a model and builds an engine of it."""

import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qgraph.errors import EngineError, ModelError, QGraphError
from qgraph.runtime.builder import BuildRequest, Built, NotBuiltError
from qgraph.runtime.tensorrt.configure import capabilities, configure
from qgraph.runtime.tensorrt.device import device
from qgraph.runtime.tensorrt.library import Library
from qgraph.runtime.tensorrt.options import TensorRtOptions
from qgraph.runtime.tensorrt.plan import record
from qgraph.runtime.tensorrt.profiles import add_profiles, profiles_for
from qgraph.runtime.tensorrt.progress import Phases, interruptible, monitor
from qgraph.runtime.tensorrt.timing_cache import keep_timings, load_timings

# More errors than these are counted; they mostly follow from the first.
_SHOWN = 3
_FIX = (
    "leave the node in float with --exclude, or choose another target; "
    "`qgraph lint --target tensorrt` says more"
)


def build_engine(library: Library, model: Path, request: BuildRequest) -> Built:
    """Parse a model and build an engine of it; see `_build`.

    Raises:
        EngineError, UsageError, ModelError, KeyboardInterrupt: As it does.
    """
    try:
        return _build(library, model, request)
    except QGraphError as error:
        # Whoever keeps the error would keep the library's objects in its frames. The garbage
        # collector would destroy them at any time, such as in a callback of a later build, which
        # waits for itself then.
        traceback.clear_frames(error.__traceback__)
        raise


def _build(library: Library, model: Path, request: BuildRequest) -> Built:
    """Parse a model and build an engine of it.

    Args:
        library: The library.
        model: ONNX file; external data lies beside it.
        request: Shapes, options, progress. Its options are a `TensorRtOptions`.

    Raises:
        EngineError: The parser refuses the model (the nodes are named), an option is not there, or
            an input's shape is missing or does not fit.
        UsageError: Shapes are given for an input that is not there.
        NotBuiltError: The builder refuses it.
        ModelError: The file does not exist.
        KeyboardInterrupt: The user has stopped it.
    """
    if not model.is_file():
        raise ModelError("no such file", where=str(model))
    started = time.perf_counter()
    options = request.options or TensorRtOptions()
    log = library.logger()
    builder = library.module.Builder(log)
    if builder is None:
        raise refusal(library, log.errors)
    network, parser = parse(library, builder, model, log)
    config = builder.create_builder_config()
    profiles = profiles_for(network, options.profiles, request.shapes)
    add_profiles(builder, config, network, profiles)
    chosen = capabilities(library, options, request.capability)
    configure(library, config, options, chosen)
    timed = options.timing_cache and library.times_kernels
    if timed:
        load_timings(library, config, device())
    phases = Phases(request.progress)
    config.progress_monitor = watcher = monitor(library, phases)
    engine = interruptible(lambda: builder.build_serialized_network(network, config), phases)
    del watcher, parser  # both must outlive the build
    if engine is None:
        raise refusal(library, log.errors, NotBuiltError)
    if timed:
        keep_timings(library, config, device())
    seconds = time.perf_counter() - started
    data = bytes(engine)
    about = record(library, model, data, profiles, options, chosen)
    return Built(data, str(library), seconds, network.num_layers, about)


def parse(library: Library, builder: Any, model: Path, log: Any) -> tuple[Any, Any]:
    """Return the network of a model, and its parser, which the network needs alive.

    Raises:
        EngineError: The parser refuses the model.
    """
    network = builder.create_network(library.network_flags())
    parser = library.module.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        raise refusal(library, _parser_errors(parser) or log.errors)
    return network, parser


def refusal(
    library: Library, reasons: Sequence[str], kind: type[EngineError] = EngineError
) -> EngineError:
    """Return the error for a refused model."""
    lines = [" ".join(each.split()) for each in dict.fromkeys(reasons)] or ["it gives no reason"]
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    error = kind(
        f"{library.title} refuses the model: {'; '.join(lines[:_SHOWN])}{more}",
        where="tensorrt",
        fix=_FIX,
    )
    if isinstance(error, NotBuiltError):
        error.reasons = tuple(lines)
    return error


def _parser_errors(parser: Any) -> list[str]:
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name, operator = error.node_name(), error.node_operator()
        where = f"{operator} {name!r}: " if operator or name else ""
        lines.append(f"{where}{error.desc()}")
    return lines
