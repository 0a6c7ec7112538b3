"""What a worker process does: tasks in, results out, over pipes to the process that started it."""

import os
import pickle
import signal
import struct
import sys
import traceback
from typing import IO, Any, NoReturn

from qgraph.errors import EngineError
from qgraph.tasks.task import Task

_LENGTH = struct.Struct("<Q")


def send(stream: IO[bytes], message: bytes) -> None:
    """Write one message."""
    stream.write(_LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes | None:
    """Read one message; None where the stream ends before its end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    message = stream.read(length)
    return message if len(message) == length else None


def serve() -> None:
    """Run tasks until there are no more."""
    # Ctrl-C reaches the whole group of processes; the one that gave the tasks decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # What tasks print must not come between the answers.
    os.dup2(2, 1)
    os.close(0)
    while (request := receive(requests)) is not None:
        try:
            send(answers, _answer(pickle.loads(request)))
        except BrokenPipeError:
            return


def portable(error: Exception, key: str) -> Exception:
    """Return an error that can be sent, with the place where it was raised as a note."""
    place = traceback.format_exc().rstrip()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its class does while it is pickled
        error = EngineError(f"raised {type(error).__name__} ({error})", where=key)
    error.add_note(f"In the worker that ran {key}:\n{place}")
    return error


def _answer(task: Task) -> bytes:
    try:
        return pickle.dumps((None, task.call()), pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001 - raised again where the task came from
        found: tuple[Any, None] = (portable(error, task.key), None)
        return pickle.dumps(found, pickle.HIGHEST_PROTOCOL)


def _leave(*_: Any) -> NoReturn:
    sys.exit(0)
