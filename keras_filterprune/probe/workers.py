"""Measure several choices of filters side by side, in other processes."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from keras_filterprune.analysis import analyze

Choice = dict[str, np.ndarray]


class Measure(Protocol):
    """What can be measured elsewhere: made as `type(measure)(graph, *measure.payload())`, called with kept units."""

    def payload(self) -> tuple: ...

    def __call__(self, kept: Choice) -> Any: ...


def spread(model: keras.Model, measure: Measure, choices: Iterable[Choice], executor: Any) -> Iterator[Any]:
    """Yield what `measure` says of every choice, in order.

    Args:
        model: the model that is measured.
        measure: see `Measure`.
        choices: {group name: units that stay} each.
        executor: a `concurrent.futures` executor, or one with the same `submit`; None: this process, one by one.
    """
    if executor is None:
        yield from map(measure, choices)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        packed = pickle.dumps((type(measure), measure.payload(), path.read_bytes()))
    futures = [executor.submit(_elsewhere, packed, kept) for kept in choices]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


# The measure that this process has made last, by the digest of what it was made from.
_made: dict[str, Measure] = {}


def _elsewhere(packed: bytes, kept: Choice) -> Any:
    key = hashlib.sha256(packed).hexdigest()
    if key not in _made:
        kind, payload, content = pickle.loads(packed)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.keras")
            path.write_bytes(content)
            graph = analyze(keras.saving.load_model(path))
        _made.clear()
        _made[key] = kind(graph, *payload)
    return _made[key](kept)
