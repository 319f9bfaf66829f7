"""Silence for native code, which no setting of Python holds back."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager

from tflite_bench.quiet import Shared, flush, open_standard_descriptors


def quiet() -> AbstractContextManager:
    """Drop what native code writes to stdout and stderr, and the engines' warnings about the interpreters they use.

    Returns:
        A context manager. What other threads print in the meantime is dropped as well.
    """
    return _SILENCE


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter is deprecated", UserWarning)
        warnings.filterwarnings("ignore", r"Warning: Enabling `experimental_preserve_all_tensors`", UserWarning)
        # A notebook's streams are none of the process's descriptors.
        logger = logging.getLogger("tensorflow")
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        open_standard_descriptors()
        sink = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, sink)
        for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
            flush(stream)
            saved = os.dup(descriptor)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
            stack.callback(flush, stream)
            os.dup2(sink, descriptor)
        yield


_SILENCE = Shared(_silence)
