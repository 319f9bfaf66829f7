"""Measure several choices of filters side by side, in other processes."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import keras

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import wrong
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.types import ChannelGraph


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
        model.save(path)
        packed = pickle.dumps((type(measure), measure.payload(), path.read_bytes()))
    futures = [executor.submit(_elsewhere, packed, dict(kept.units)) for kept in choices]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def check_executor(executor: Any) -> Any:
    """`executor`, or `InvalidValueError` where work cannot be submitted to it."""
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise wrong("executor", executor, "a concurrent.futures executor, or one with the same submit, or None")
    return executor


# The measure that this process has made last, and its graph, by the digest of what it was made from.
_made: dict[str, tuple[Measure, ChannelGraph]] = {}


def _elsewhere(packed: bytes, units: dict[str, Any]) -> Any:
    key = hashlib.sha256(packed).hexdigest()
    if key not in _made:
        kind, payload, content = pickle.loads(packed)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.keras")
            path.write_bytes(content)
            graph = analyze(keras.saving.load_model(path))
        _made.clear()
        _made[key] = kind(graph, *payload), graph
    measure, graph = _made[key]
    return measure(Kept(graph, units))
