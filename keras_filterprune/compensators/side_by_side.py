"""Original and pruned network side by side, so that each layer can be adjusted to what the original computes."""

from __future__ import annotations

import abc
from collections import Counter
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import Call
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.handlers.registry import linear_of
from keras_filterprune.probe.execute import Executor, compute
from keras_filterprune.probe.inputs import Inputs, calibration_inputs
from keras_filterprune.probe.masks import mask_of, masked, mean_over
from keras_filterprune.probe.memory import at_once, even_slices, joining
from keras_filterprune.probe.outlets import add_constant, outlets
from keras_filterprune.probe.quicker import computed
from keras_filterprune.progress import track


class SideBySide(abc.ABC):
    """Runs both networks call by call; a layer of the pruned one is adjusted just before it runs.

    Args:
        rebuilt: the pruned model next to the original.
    """

    def __init__(self, rebuilt: Rebuilt):
        self.rebuilt = rebuilt
        view = rebuilt.graph.view
        calls = Counter(call.path for call in view.calls)
        self.outlets = outlets(view)
        self._resize_of = {r.call.path: r for r in rebuilt.resizes.values() if calls[r.call.path] == 1}
        self._before: Any = None
        self.left = Executor(view, self._original, check=True)
        self.right = Executor(rebuilt.smaller_view(), self._pruned, check=True)

    @abc.abstractmethod
    def adjust(self, call: Call, twin: Any, before: Any, after: Any) -> None:
        """Change the weights of `twin`, called once, from the inputs of the layer in both networks, which differ."""

    def run(self, data: Any, progress: bool) -> str:
        """Go through the network on calibration data; returns the number of samples, or from which to which it grew.

        A layer is adjusted to all samples at once. Where early maps are too large for that, they are adjusted to the
        first samples, and more join as soon as they fit into memory.
        """
        inputs = calibration_inputs(data, self.rebuilt.graph.view)
        self.share = inputs.share
        numbers = list(self.rebuilt.resizes)
        # Two networks, in twice the memory: all that is held besides are rows.
        live = [inputs.live[number] for number in numbers]
        joins = {numbers[at]: count for at, count in joining(live, len(inputs))}
        counts = [0, *joins.values()]
        for number in track(numbers, "compensating", len(numbers), progress):
            if number in joins:
                start = counts[counts.index(joins[number]) - 1]
                self._join(inputs, start, joins[number], number, at_once(max(live)))
            self.left.step(number)
            self.right.step(number)
        return f"{counts[1]} to {counts[-1]}" if len(joins) > 1 else f"{counts[-1]}"

    def _join(self, inputs: Inputs, start: int, stop: int, number: int, size: int) -> None:
        """Let samples join before call `number`, through layers that are adjusted already, some at a time."""
        for side, apply in ((self.left, compute), (self.right, self._twin)):
            others = []
            for part in even_slices(stop - start, size):
                others.append(side.another(apply))
                others[-1].feed(inputs[start + part.start : start + part.stop])
                for earlier in self.rebuilt.resizes:
                    if earlier == number:
                        break
                    others[-1].step(earlier)
            side.join(others)

    def _twin(self, call: Call, args: tuple, kwargs: dict) -> Any:
        """What the layer of the pruned network gives, which is adjusted by now."""
        return computed(self.rebuilt.twin(call), args, kwargs)

    def _original(self, call: Call, args: tuple, kwargs: dict) -> Any:
        self._before = args[0] if args else None
        return compute(call, args, kwargs)

    def _pruned(self, call: Call, args: tuple, kwargs: dict) -> Any:
        twin = self.rebuilt.twin(call)
        # A layer that is called by the names of its arguments is left as it is.
        if args and call.path in self._resize_of and named_weights(twin) and not _same(self._before, args[0]):
            self.adjust(call, twin, self._before, args[0])
        return self._twin(call, args, kwargs)

    def kept(self, call: Call) -> np.ndarray:
        """Boolean array of shape (channels,): which output channels of a layer stay."""
        r = self._resize_of[call.path]
        out = r.outputs[0]
        return r.kept(out) if out.tracked else np.ones(out.last, np.bool_)

    def match_mean(self, call: Call, twin: Any, before: Any, after: Any) -> bool:
        """Shift every output channel to the original's mean; False where it is not known what the layer multiplies."""
        linear, twin_linear = linear_of(call.op), linear_of(twin)
        if linear is None or twin_linear is None or linear.product is None or twin_linear.product is None:
            return False
        theirs, ours = linear(before), twin_linear(after)
        axes = list(range(len(ours.shape) - 1))
        theirs, ours = (masked(y, mask_of(x)) if len(y.shape) > 2 else y for y, x in ((theirs, before), (ours, after)))
        missing = keras.ops.convert_to_numpy(mean_over(theirs, axes)[0])[self.kept(call)]
        missing = missing - keras.ops.convert_to_numpy(mean_over(ours, axes)[0])
        add_constant(self.rebuilt, self.outlets[call.path], call, missing)
        return True


def _same(before: Any, after: Any) -> bool:
    """Whether a layer's input is still what it was."""
    if before.shape != after.shape:
        return False
    return bool(keras.ops.all(keras.ops.isclose(before, after, rtol=1e-3, atol=1e-5)))
