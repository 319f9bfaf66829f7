"""How much of a network runs at once: what bounds the memory of everything that is measured on data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from keras_filterprune.graph.types import ModelView, TensorRef
from keras_filterprune.handlers.base import volume

# Values of all activations that are alive at one time, in float32: 512 MiB.
MOST_VALUES = 2**27
# Samples that are run at once where even more would fit.
MOST_SAMPLES = 512


def live_values(view: ModelView, inputs: int) -> list[int]:
    """Values of one sample that are alive at each call of a view: what it reads, what it gives, and what waits.

    Args:
        view: the model.
        inputs: values of one sample's inputs, which tell how large images are where the model leaves that open.
    """
    sizes = _sizes(view)
    readers = Counter({ref: len(numbers) for ref, numbers in view.readers.items()})
    alive, found = sum(sizes[ref] for ref in view.inputs), []
    scale = inputs / max(alive, 1)
    for number, call in enumerate(view.calls):
        outputs = [TensorRef(number, index) for index in range(len(call.output_shapes))] if call.inputs else []
        alive += sum(sizes[ref] for ref in outputs)
        found.append(math.ceil(alive * scale))
        readers.subtract(call.inputs)
        gone = {ref for ref in (*call.inputs, *outputs) if not readers[ref]}
        alive -= sum(sizes[ref] for ref in gone)
    return found


def all_values(view: ModelView, inputs: int) -> int:
    """Values of one sample in all tensors of a view together, which gradients hold; arguments as in `live_values`."""
    sizes = _sizes(view)
    return math.ceil(sum(sizes.values()) * inputs / max(sum(sizes[ref] for ref in view.inputs), 1))


def _sizes(view: ModelView) -> dict[TensorRef, int]:
    return {
        TensorRef(number, index): volume(shape[1:]) if shape else 0
        for number, call in enumerate(view.calls)
        for index, shape in enumerate(call.output_shapes)
    }


def at_once(values: int, most: int = MOST_SAMPLES) -> int:
    """How many samples of so many values each may be held together, at least 1 and at most `most`."""
    return max(1, min(most, MOST_VALUES // max(values, 1)))


def held_at_once(view: ModelView, most: int) -> int:
    """How many samples may go through a model that is called as a whole: Keras holds all tensors until the end."""
    return at_once(sum(_sizes(view).values()), most)


def even_slices(count: int, size: int) -> list[slice]:
    """As few slices of at most `size` as go over `count`, as even as can be: compilers see two sizes at most."""
    parts = -(-count // size)
    size = -(-count // max(parts, 1))
    return [slice(start, min(start + size, count)) for start in range(0, count, max(size, 1))]


def joining(live: Sequence[int], samples: int) -> Iterator[tuple[int, int]]:
    """Where samples join a run that holds all its samples at once: (call number, how many there are from it on).

    Early maps are large, and tell much about few samples; behind them more fit. Numbers double at least.

    Args:
        live: values of a sample that are alive at each call.
        samples: how many there are.
    """
    count, behind = 0, np.maximum.accumulate(live[::-1])[::-1]
    for number, values in enumerate(behind):
        fit = min(samples, at_once(int(values), samples))
        if fit > count and fit >= min(2 * count, samples):
            count = fit
            yield number, count
