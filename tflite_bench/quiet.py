"""Silence for LiteRT, which says on stderr what it did not find."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

# What LiteRT says of a computer without NPU, GPU or vendor plugins; a benchmark of the CPU does not miss them.
_HARMLESS = re.compile(rb"INFO: |WARNING: \[(npu_registry|gpu_registry|compiler_plugin)\.cc")


class Shared:
    """A context that several threads are in at a time: the first one in enters it, the last one out leaves it.

    Args:
        context: makes a context manager that changes something of the whole process, and puts it back.
    """

    def __init__(self, context: Callable[[], AbstractContextManager]):
        self._context, self._lock, self._inside = context, threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._entered = self._context()
                self._entered.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._entered.__exit__(None, None, None)


def quiet_litert() -> AbstractContextManager:
    """Hold back what LiteRT writes to stderr of itself; all else appears when the block ends.

    Returns:
        A context manager.
    """
    return _SILENCE


def flush(stream: Any) -> None:
    """Flush a stream, if there is one: a service may have none, or have closed it."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        stream.flush()


def say(text: str) -> None:
    """Write to stderr at once, if there is one."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        sys.stderr.write(text)
    flush(sys.stderr)


def open_standard_descriptors() -> None:
    """Give a process that was started without stdin, stdout or stderr the null device in their places.

    Otherwise the next file that is opened takes the number, and native code writes its messages into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    open_standard_descriptors()
    flush(sys.stderr)
    with tempfile.TemporaryFile() as held:
        terminal = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            hidden = False
            for line in held:
                # LiteRT continues a message on lines that begin so.
                hidden = bool(_HARMLESS.match(line)) or (hidden and line.startswith("└".encode()))
                if not hidden:
                    os.write(2, line)


_SILENCE = Shared(_silence)
