"""What is learnt in recovery: batches of calibration inputs without end, augmented and mixed in pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import check_returned
from keras_filterprune.graph.keras_view import packed
from keras_filterprune.probe.data import Samples
from keras_filterprune.probe.inputs import Inputs

# Steps at one rate.
EPOCH = 10
# Of the distribution of a sample's share in a mixture.
_MIXING = 0.5


class Lessons(keras.utils.PyDataset):
    """Batches in random order, `EPOCH` of them at a time; every sample is met once before one is met again.

    Args:
        model: who learns.
        inputs: samples.
        numbers: those that are learnt from.
        size: of a batch.
        augment: see `Recovery`.
        seed: of the order and of mixtures.
    """

    def __init__(
        self,
        model: keras.Model,
        inputs: Inputs,
        numbers: np.ndarray,
        size: int,
        augment: Callable[[Any], Any] | None,
        seed: int,
    ):
        super().__init__()
        self._model, self._inputs, self._numbers, self._size, self._augment = model, inputs, numbers, size, augment
        self._generator, self._left = np.random.default_rng(seed), np.zeros(0, int)

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, index: int) -> tuple[Any]:
        return (packed(self._model, self._next()),)

    def samples(self) -> Samples:
        """As many further samples as are learnt from, in the form of lessons."""
        return Samples(self._further())

    def _further(self) -> Iterator[list[np.ndarray]]:
        for _ in range(-(-len(self._numbers) // self._size)):
            yield self._next()

    def _next(self) -> list[np.ndarray]:
        """Flat inputs of a batch."""
        while len(self._left) < self._size:
            self._left = np.concatenate([self._left, self._generator.permutation(self._numbers)])
        now, self._left = np.split(self._left, [self._size])
        arrays = self._inputs.take(now)
        if self._augment is not None:
            arrays = _augmented(self._augment, arrays)
        return _mixed(arrays, self._generator) if all(x.dtype.kind == "f" for x in arrays) else arrays


def _augmented(augment: Callable[[Any], Any], arrays: list[np.ndarray]) -> list[np.ndarray]:
    given = augment(arrays[0] if len(arrays) == 1 else arrays)
    found = [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(given)]
    shapes = [x.shape for x in arrays]
    check_returned([x.shape for x in found] == shapes, "augment", f"return inputs of shapes {shapes}", given)
    return [x.astype(old.dtype) for x, old in zip(found, arrays, strict=True)]


def _mixed(arrays: list[np.ndarray], generator: np.random.Generator) -> list[np.ndarray]:
    """Every sample with a share of another: there are as many as one wants, and the teacher knows what they are."""
    size = len(arrays[0])
    share, others = generator.beta(_MIXING, _MIXING, size), generator.permutation(size)
    mixed = []
    for x in arrays:
        own = share.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        mixed.append(own * x + (1 - own) * x[others])
    return mixed
