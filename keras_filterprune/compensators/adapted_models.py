"""Put 1x1 convolutions around a model's convolutions, and merge them where they do not pay."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from keras_filterprune.compensators.adapter_costs import Convolutions
from keras_filterprune.compensators.adapters import AFTER, BEFORE, Adapted, adapted_convolutions, is_convolution
from keras_filterprune.graph.keras_view import copy_value, named_weights
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.handlers.registry import known_linear
from keras_filterprune.rebuild.clone import Cloner, without_old_shapes
from keras_filterprune.rebuild.state import copy_activation
from keras_filterprune.rebuild.verify import rounding
from keras_filterprune.tracing import trace_model

L = keras.layers
# What a convolution does after its kernel: this moves with the end of the chain.
_AFTER_KERNEL = (
    "use_bias",
    "activation",
    "activity_regularizer",
    "bias_initializer",
    "bias_regularizer",
    "bias_constraint",
)


def wrappable(graph: ChannelGraph) -> list[str]:
    """Paths of the convolutions that adapters fit around, or are around already.

    They have a window and one group and are called once; the first of the model is none of them, nor are those whose
    adapters would take another layer's name.
    """
    calls = Counter(call.path for call in graph.view.calls)
    adapted = adapted_convolutions(graph.view)
    found = [call for call in graph.view.calls if is_convolution(call.op)]

    def free(path: str) -> bool:
        """Whether the names of the adapters that it lacks are nobody's."""
        own = adapted.get(path)
        there = (own.before, own.after) if own else (None, None)
        return not any(path + side in calls and call is None for side, call in zip((BEFORE, AFTER), there, strict=True))

    return [
        call.path
        for call in found[1:]
        if math.prod(call.op.kernel_size) > 1 and call.op.groups == 1 and calls[call.path] == 1 and free(call.path)
    ]


def add_adapters(model: keras.Model, graph: ChannelGraph, paths: Collection[str]) -> keras.Model:
    """An equal model with identity 1x1 convolutions before and after the given convolutions, where they have none.

    Bias and activation move to the convolution behind.

    Args:
        model: the model that `graph` was read from; it is not changed.
        graph: `trace_model(model)`.
        paths: of convolutions, among those that are `wrappable`.
    """
    adapted = adapted_convolutions(graph.view)
    chosen = [adapted.get(call.path, Adapted(None, call, None)) for call in graph.view.calls if call.path in paths]
    lacking = {id(found.core.op): (found.before is None, found.after is None) for found in chosen}
    return _Adder(graph, lacking).result(model)


def merge_adapters(model: keras.Model, params: bool = False) -> keras.Model:
    """An equal model in which every adapter that costs more than it saves is multiplied into its convolution.

    The cost is counted in multiply-accumulates, or in parameters with `params`.
    """
    return _Merger(trace_model(model), params).result(model)


class _InPlace(Cloner):
    """A cloner that sees where every layer's output goes."""

    def model(self, model: keras.Model) -> keras.Model:
        if not isinstance(model, keras.Sequential):
            return super().model(model)
        # Only functional models say where a layer's output goes.
        self.twins[id(model)] = super().model(keras.Model(model.inputs[0], model.outputs[0], name=model.name))
        return self.twins[id(model)]


class _Adder(_InPlace):
    """`lacking`: {id of a convolution: whether an adapter goes (before it, behind it)}."""

    def __init__(self, graph: ChannelGraph, lacking: dict[int, tuple[bool, bool]]):
        super().__init__(graph.view)
        self._lacking = lacking
        self._around: dict[int, tuple[Any, Any]] = {}
        self._copied: list[tuple[Any, Any]] = []

    def _clone(self, op: Any) -> Any:
        if id(op) not in self._lacking:
            return super()._clone(op)
        config = without_old_shapes(self.config(op))
        plain = config | {"use_bias": False, "activation": None, "activity_regularizer": None}
        pointwise = {"kernel_size": 1, "strides": 1, "dilation_rate": 1, "padding": "valid"}
        kind, (before, after) = type(op), self._lacking[id(op)]
        core = self.live.build(kind, plain if after else config)
        self._around[id(core)] = (
            self.live.build(kind, plain | pointwise | {"filters": op.kernel.shape[-2], "name": op.name + BEFORE})
            if before
            else None,
            self.live.build(kind, config | pointwise | {"name": op.name + AFTER}) if after else None,
        )
        self._copied.append((op, core))
        return core

    def call(self, twin: Any, *args, **kwargs) -> Any:
        before, after = self._around.get(id(twin), (None, None))
        if before is not None:
            args = (before(args[0]), *args[1:])
        outputs = super().call(twin, *args, **kwargs)
        return outputs if after is None else after(outputs)

    def write(self) -> None:
        for op, core in self._copied:
            own, (before, after) = named_weights(op), self._around[id(core)]
            for name, variable in named_weights(core).items():
                copy_value(own[name], variable)
            for adapter in (before, after):
                if adapter is not None:
                    known_linear(adapter).assign(np.eye(adapter.filters))
            if op.use_bias and after is not None:
                copy_value(op.bias, after.bias)
            copy_activation(op, core if after is None else after)


class _Merger(_InPlace):
    def __init__(self, graph: ChannelGraph, params: bool):
        super().__init__(graph.view)
        # Products of kernels round, as no copy does.
        self.tolerance = max(1e-3, rounding(graph.view))
        # By convolution, with the adapters that go.
        self._merged: dict[int, Adapted] = {}
        self._gone: set[int] = set()
        self._skipped: set[int] = set()
        adapted = list(adapted_convolutions(graph.view).values())
        widths = Convolutions(adapted, params)
        for found, into, onto in zip(adapted, *widths.merged(*widths.narrow), strict=True):
            merged = Adapted(found.before if into else None, found.core, found.after if onto else None)
            gone = {id(call.op) for call in (merged.before, merged.after) if call is not None}
            if gone:
                self._merged[id(found.core.op)] = merged
            self._gone |= gone

    def _clone(self, op: Any) -> Any:
        if id(op) in self._gone:
            placeholder = L.Identity(name=op.name)
            self._skipped.add(id(placeholder))
            # Kept alive by `twins`, so that its id stays its own.
            return placeholder
        if id(op) not in self._merged:
            return super()._clone(op)
        after, config = self._merged[id(op)].after, without_old_shapes(self.config(op))
        if after is not None:
            behind = without_old_shapes(self.config(after.op))
            config |= {"filters": behind["filters"]} | {name: behind[name] for name in _AFTER_KERNEL}
        return self.live.build(type(op), config)

    def call(self, twin: Any, *args, **kwargs) -> Any:
        return args[0] if id(twin) in self._skipped else super().call(twin, *args, **kwargs)

    def write(self) -> None:
        for merged in self._merged.values():
            kernel = known_linear(merged.core.op).slices
            if merged.before is not None:
                kernel = known_linear(merged.before.op).slices[0] @ kernel
            if merged.after is not None:
                kernel = kernel @ known_linear(merged.after.op).slices[0]
            twin = self.twins[id(merged.core.op)]
            known_linear(twin).assign(kernel)
            last = (merged.after or merged.core).op
            if twin.use_bias:
                copy_value(last.bias, twin.bias)
            copy_activation(last, twin)
