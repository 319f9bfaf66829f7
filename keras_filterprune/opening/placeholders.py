"""What stands in a trace for what will be plain layers: nothing is built, and no live layer gets a node."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import output_spec

_NUMBER = itertools.count()


class Placeholder(keras.Operation):
    """An operation of a trace; `spec` gives its symbolic outputs for symbolic inputs."""

    def __init__(self, spec: Callable[..., Any]):
        super().__init__(name=f"placeholder_{next(_NUMBER)}")
        self._spec = spec

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self._spec(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


class Leaf(Placeholder):
    """A layer or an operation `op` of the model that stays what it is."""

    def __init__(self, op: Any):
        super().__init__(self._infer)
        self.op = op

    def _infer(self, *args: Any, **kwargs: Any) -> Any:
        outputs = output_spec(self.op, args, kwargs)
        computes, stores = getattr(self.op, "compute_dtype", None), getattr(self.op, "variable_dtype", None)
        if computes == stores:
            return outputs
        # Without the scope in which Keras casts weights, floats come out as wide as those are.
        return keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape, dtype=computes) if x is not None and x.dtype == stores else x, outputs
        )


class HeldWeight(Placeholder):
    """A weight that a composite layer, its holder, has itself."""

    def __init__(self, variable: Any, holder: Any):
        self.variable, self.holder = variable, holder
        dtype = holder.compute_dtype if "float" in variable.dtype else variable.dtype
        super().__init__(lambda anchor: keras.KerasTensor(tuple(variable.shape), dtype=dtype))


class HeldConstant(Placeholder):
    """A constant on which a layer is called, in the layer of this path."""

    def __init__(self, value: Any, path: tuple[str, ...]):
        self.value, self.path = keras.ops.convert_to_numpy(value), path
        self.dtype = keras.backend.standardize_dtype(value.dtype)
        super().__init__(lambda anchor: keras.KerasTensor(np.shape(self.value), dtype=self.dtype))


class Losses(Placeholder):
    """Gives its first input; the others are losses that the call of a layer, of this path, has added."""

    def __init__(self, layer: Any, path: tuple[str, ...]):
        self.layer, self.path = layer, path
        super().__init__(lambda x, *losses: keras.KerasTensor(x.shape, dtype=x.dtype))


def settings_of(op: Any) -> dict[str, Any]:
    """What an operation was made with, its name left out; {} where Keras cannot write that down, a function perhaps.

    What is missed then, the proof finds: it runs on a batch of another size.
    """
    try:
        return {key: value for key, value in op.get_config().items() if key != "name"}
    except NotImplementedError:
        return {}
