"""Measure several choices of filters side by side, in other processes."""

from __future__ import annotations

import hashlib
import os
import pickle
import queue
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import keras

from keras_filterprune.checks import wrong
from keras_filterprune.files import save_keras
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.tracing import trace_model


class Measure(Protocol):
    """What can be measured elsewhere: made as `type(measure)(graph, *measure.payload())`, called with what stays."""

    def payload(self) -> tuple: ...

    def __call__(self, kept: Kept) -> Any: ...


def spread(model: keras.Model, measure: Measure, choices: Iterable[Kept], executor: Any) -> Iterator[Any]:
    """Yield what `measure` says of every choice, in order.

    Args:
        model: the model that is measured.
        measure: see `Measure`.
        choices: what stays, each.
        executor: a `concurrent.futures` executor, or one with the same `submit`; None: this process, one by one.
    """
    if executor is None:
        yield from map(measure, choices)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        save_keras(model, path)
        content = pickle.dumps((type(measure), measure.payload(), path.read_bytes()))
    yield from _Tasks(executor, content).run(dict(kept.units) for kept in choices)


class _Tasks:
    """Choices on their way to workers and back. What they are measured with goes to each worker once, as far as known.

    A task names it by its digest alone. A worker that lacks it says so, and who it is; then the task goes out again
    with the content, but never more of those at a time than there are workers that lack it. Tasks under way are few:
    twice as many as workers have answered, and some for those that have not.
    """

    def __init__(self, executor: Any, content: bytes):
        check_executor(executor)
        self._executor, self._content = executor, content
        self._digest = hashlib.sha256(content).hexdigest()
        self._under_way: dict[Any, tuple[int, dict, bool]] = {}
        self._finished: queue.SimpleQueue = queue.SimpleQueue()
        self._lacking: set[str] = set()
        self._served: set[str] = set()

    def run(self, choices: Iterable[dict]) -> Iterator[Any]:
        numbered, more = enumerate(choices), True
        returned: deque[tuple[int, dict]] = deque()
        found: dict[int, Any] = {}
        following = 0
        try:
            while True:
                while more and len(self._under_way) + len(returned) < 2 * len(self._served | self._lacking) + 2:
                    task = next(numbered, None)
                    more = task is not None
                    if task is not None:
                        self._submit(*task, False)
                if not self._under_way:
                    return
                future = self._finished.get()
                number, units, _ = self._under_way.pop(future)
                worker, answer = future.result()
                if answer is None:
                    self._lacking.add(worker)
                    returned.append((number, units))
                else:
                    self._served.add(worker)
                    self._lacking.discard(worker)
                    (found[number],) = answer
                self._again(returned, answer is not None or not self._under_way)
                while following in found:
                    yield found.pop(following)
                    following += 1
        finally:
            for future in self._under_way:
                future.cancel()

    def _again(self, returned: deque[tuple[int, dict]], settled: bool) -> None:
        """Send tasks out again that met workers without the content: with it for those, else when one has finished."""
        while returned and sum(given for *_, given in self._under_way.values()) < max(len(self._lacking), 1):
            self._submit(*returned.popleft(), True)
        while returned and settled:
            self._submit(*returned.popleft(), False)

    def _submit(self, number: int, units: dict, given: bool) -> None:
        future = self._executor.submit(_elsewhere, self._digest, units, self._content if given else None)
        self._under_way[future] = number, units, given
        future.add_done_callback(self._finished.put)


def check_executor(executor: Any) -> Any:
    """`executor`, or `InvalidValueError` where work cannot be submitted to it."""
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise wrong("executor", executor, "a concurrent.futures executor, or one with the same submit, or None")
    return executor


# The measure that this process has made last, and its graph, by the digest of what it was made from.
_made: dict[str, tuple[Measure, ChannelGraph]] = {}
_making = threading.Lock()


def _elsewhere(digest: str, units: dict[str, Any], content: bytes | None) -> tuple[str, tuple | None]:
    """Who this worker is, and (what is measured,); None in its place where the content is needed and missing."""
    worker = f"{socket.gethostname()} {os.getpid()}"
    with _making:
        if digest not in _made:
            if content is None:
                return worker, None
            kind, payload, saved = pickle.loads(content)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.keras")
                path.write_bytes(saved)
                # What is measured knows the loss; one's own need not be registered.
                graph = trace_model(keras.saving.load_model(path, compile=False))
            _made.clear()
            _made[digest] = kind(graph, *payload), graph
        measure, graph = _made[digest]
    return worker, (measure(Kept(graph, units)),)
