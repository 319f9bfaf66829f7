"""Put 1x1 convolutions around a model's convolutions, and merge them where they do not pay."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from keras_filterprune.analysis import analyze
from keras_filterprune.compensators.adapters import AFTER, BEFORE, Adapted, adapted_convolutions, is_convolution
from keras_filterprune.graph.keras_view import copy_value, named_weights
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.handlers.base import volume
from keras_filterprune.handlers.registry import known_linear
from keras_filterprune.rebuild.clone import Cloner, without_old_shapes
from keras_filterprune.rebuild.verify import rounding

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
    return [
        call.path
        for call in found[1:]
        if math.prod(call.op.kernel_size) > 1
        and call.op.groups == 1
        and calls[call.path] == 1
        and (call.path in adapted or not {call.path + BEFORE, call.path + AFTER} & set(calls))
    ]


def add_adapters(model: keras.Model, graph: ChannelGraph, paths: Collection[str]) -> keras.Model:
    """An equal model with identity 1x1 convolutions before and after the given convolutions that have none.

    Bias and activation move to the convolution behind.

    Args:
        model: the model that `graph` was read from; it is not changed.
        graph: `analyze(model)`.
        paths: of convolutions, among those that are `wrappable`.
    """
    bare = set(paths) - set(adapted_convolutions(graph.view))
    return _Adder(graph, {id(call.op) for call in graph.view.calls if call.path in bare}).result(model)


def merge_adapters(model: keras.Model, params: bool = False) -> keras.Model:
    """An equal model in which every adapter that costs more than it saves is multiplied into its convolution.

    The cost is counted in multiply-accumulates, or in parameters with `params`.
    """
    return _Merger(analyze(model), params).result(model)


class _InPlace(Cloner):
    """A cloner that sees where every layer's output goes."""

    def model(self, model: keras.Model) -> keras.Model:
        if not isinstance(model, keras.Sequential):
            return super().model(model)
        # Only functional models say where a layer's output goes.
        self.twins[id(model)] = super().model(keras.Model(model.inputs[0], model.outputs[0], name=model.name))
        return self.twins[id(model)]


class _Adder(_InPlace):
    def __init__(self, graph: ChannelGraph, wrapped: set[int]):
        super().__init__(graph.view)
        self._wrapped = wrapped
        self._around: dict[int, tuple[Any, Any]] = {}
        self._copied: list[tuple[Any, Any, Any, Any]] = []

    def _clone(self, op: Any) -> Any:
        if id(op) not in self._wrapped:
            return super()._clone(op)
        config = without_old_shapes(self.config(op))
        plain = config | {"use_bias": False, "activation": None, "activity_regularizer": None}
        pointwise = {"kernel_size": 1, "strides": 1, "dilation_rate": 1, "padding": "valid"}
        kind, channels = type(op), op.kernel.shape[-2]
        core = self.live.build(kind, plain)
        before = self.live.build(kind, plain | pointwise | {"filters": channels, "name": op.name + BEFORE})
        after = self.live.build(kind, config | pointwise | {"name": op.name + AFTER})
        self._around[id(core)] = before, after
        self._copied.append((op, before, core, after))
        return core

    def call(self, twin: Any, *args, **kwargs) -> Any:
        before, after = self._around.get(id(twin), (None, None))
        if before is None:
            return super().call(twin, *args, **kwargs)
        return after(twin(before(args[0])))

    def write(self) -> None:
        for op, before, core, after in self._copied:
            own = named_weights(op)
            for name, variable in named_weights(core).items():
                copy_value(own[name], variable)
            for adapter in (before, after):
                known_linear(adapter).assign(np.eye(adapter.filters))
            if op.use_bias:
                copy_value(op.bias, after.bias)


class _Merger(_InPlace):
    def __init__(self, graph: ChannelGraph, params: bool):
        super().__init__(graph.view)
        # Products of kernels round, as no copy does.
        self.tolerance = max(1e-3, rounding(graph.view))
        self._cores: dict[int, tuple[Adapted, bool, bool]] = {}
        self._gone: set[int] = set()
        self._skipped: set[int] = set()
        for found in adapted_convolutions(graph.view).values():
            into, onto = _merged(found, params)
            self._cores[id(found.core.op)] = found, into, onto
            self._gone |= {id(c.op) for c, merge in ((found.before, into), (found.after, onto)) if merge}

    def _clone(self, op: Any) -> Any:
        if id(op) in self._gone:
            placeholder = L.Identity(name=op.name)
            self._skipped.add(id(placeholder))
            # Kept alive by `twins`, so that its id stays its own.
            return placeholder
        if id(op) not in self._cores:
            return super()._clone(op)
        found, _, onto = self._cores[id(op)]
        config = without_old_shapes(self.config(op))
        if onto:
            behind = without_old_shapes(self.config(found.after.op))
            config |= {"filters": behind["filters"]} | {name: behind[name] for name in _AFTER_KERNEL}
        return self.live.build(type(op), config)

    def call(self, twin: Any, *args, **kwargs) -> Any:
        return args[0] if id(twin) in self._skipped else super().call(twin, *args, **kwargs)

    def write(self) -> None:
        for found, into, onto in self._cores.values():
            before, kernel, after = (linear.slices for linear in found.linears)
            if into:
                kernel = before[0] @ kernel
            if onto:
                kernel = kernel @ after[0]
            twin = self.twins[id(found.core.op)]
            known_linear(twin).assign(kernel)
            if onto and twin.use_bias:
                copy_value(found.after.op.bias, twin.bias)


def _merged(found: Adapted, params: bool) -> tuple[bool, bool]:
    """Whether (before, after) are cheaper as part of the kernel."""
    taps = math.prod(found.core.op.kernel_size)
    shapes = found.core.input_shapes, found.core.output_shapes
    inputs, outputs = (1, 1) if params else (volume(s[0][1:-1]) for s in shapes)
    wide_in, narrow_in = found.before.op.kernel.shape[-2:]
    narrow_out, wide_out = found.after.op.kernel.shape[-2:]

    def cost(into: bool, onto: bool) -> int:
        a, b = wide_in if into else narrow_in, wide_out if onto else narrow_out
        beside = (0 if into else inputs * wide_in * narrow_in) + (0 if onto else outputs * narrow_out * wide_out)
        return beside + outputs * taps * a * b

    return min(((i, o) for i in (True, False) for o in (True, False)), key=lambda choice: cost(*choice))
