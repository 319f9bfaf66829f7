"""Recurrent layers: units are filters of every gate, and read each other from step to step."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor, TensorRef
from keras_filterprune.handlers.activation import pin_mixing
from keras_filterprune.handlers.base import Handler, Resize, describe, give_up, read_last_axis, volume
from keras_filterprune.handlers.linear import Linear
from keras_filterprune.handlers.registry import check_format, handler_for, register_handler

L = keras.layers


@register_handler(L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D)
class Recurrent(Handler):
    """Kernels (*window, in, gates * units) and (*window, units, gates * units): what a unit computes goes with it."""

    def layers(self, op: Any) -> list[Any]:
        """The layers that run over time, whose units are the same."""
        return [op]

    def cells(self, layer: Any) -> list[Any] | None:
        """What such a layer does in a step, one cell on the other; None where that is not known."""
        return [layer.cell]

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        layers = self.layers(call.op)
        for layer in layers:
            check_format(layer)
        stacks = [stack for layer in layers if (stack := self.cells(layer)) is not None]
        if len(stacks) < len(layers) or len({tuple(map(_width, stack)) for stack in stacks}) > 1:
            t.constant(call.path, *named_weights(call.op))
            return give_up(call, inputs, t, "feeds")
        given = _arguments(call, inputs)
        x = read_last_axis(call, given.sequences, t)
        units = [t.fresh(_width(cell), (call.path, f"filters {n}")) for n, cell in enumerate(stacks[0])]
        states = [ids for _ in layers for ids, cell in zip(units, stacks[0], strict=True) for _ in _state_sizes(cell)]
        for stack in stacks:
            for cell, read, ids in zip(stack, [x, *units], units, strict=False):
                _bind(call, cell, read, ids, t)
        for state, ids in zip(given.states, states, strict=False):
            t.tie(ids, read_last_axis(call, state, t))
        t.pin_tensors(given.others, f"masks {describe(call)}")
        return self.made(call, units[-1], states)

    def made(self, call: Call, ids: np.ndarray, states: Sequence[np.ndarray]) -> list[Tensor]:
        """The outputs, of channels `ids`, and behind them the states."""
        channels = zip(call.output_shapes, [ids, *states], strict=False)
        return [Tensor(shape, len(shape) - 1, ids) if shape else Tensor(shape) for shape, ids in channels]

    def resize(self, config: dict[str, Any], r: Resize) -> dict[str, Any]:
        (stack, *_) = map(self.cells, self.layers(r.call.op))
        return self.resized(config, [_kept(r, cell) for cell in stack or ()])

    def resized(self, config: dict[str, Any], widths: Sequence[int]) -> dict[str, Any]:
        """The configuration with so many units in each cell."""
        return config | {"filters" if "filters" in config else "units": widths[-1]}


@register_handler(L.SimpleRNN, L.LSTM, L.GRU)
class Dense(Recurrent):
    """Gates are dense."""

    def linear(self, op: Any) -> Linear:
        # What a gate sums up has to do with what the layer remembers as well.
        return Linear(op, None, activation=getattr(op, "activation", None))


@register_handler(L.SimpleRNNCell, L.LSTMCell, L.GRUCell)
class Step(Dense):
    """A cell that is called by itself, for a step of what is no sequence to Keras."""

    def cells(self, layer: Any) -> list[Any] | None:
        return [layer]


@register_handler(L.RNN)
class Cells(Recurrent):
    """A layer made of cells: Keras' own, alone or one on the other."""

    def cells(self, layer: Any) -> list[Any] | None:
        cells = layer.cell.cells if type(layer.cell) is L.StackedRNNCells else [layer.cell]
        return cells if all(type(cell) in (L.SimpleRNNCell, L.LSTMCell, L.GRUCell) for cell in cells) else None

    def resized(self, config: dict[str, Any], widths: Sequence[int]) -> dict[str, Any]:
        inner = config["cell"]["config"]
        for cell, width in zip(inner.get("cells", [config["cell"]]), widths, strict=True):
            cell["config"]["units"] = width
        return config


@register_handler(L.Bidirectional)
class Bidirectional(Recurrent):
    """A recurrent layer for either direction of time; a unit goes in both, as Keras expects them to be as wide."""

    def layers(self, op: Any) -> list[Any]:
        return [op.forward_layer, op.backward_layer]

    def cells(self, layer: Any) -> list[Any] | None:
        handler = handler_for(layer)
        return handler.cells(layer) if isinstance(handler, Recurrent) else None

    def made(self, call: Call, ids: np.ndarray, states: Sequence[np.ndarray]) -> list[Tensor]:
        mode = call.op.merge_mode
        if mode is None:
            return super().made(call, ids, [ids, *states])
        return super().made(call, np.tile(ids, 2) if mode == "concat" else ids, states)

    def resize(self, config: dict[str, Any], r: Resize) -> dict[str, Any]:
        for key, layer in zip(("layer", "backward_layer"), self.layers(r.call.op), strict=True):
            handler = handler_for(layer)
            # What is no recurrent layer is pinned, and never gets here.
            if isinstance(handler, Recurrent):
                widths = [_kept(r, cell) for cell in handler.cells(layer) or ()]
                config[key]["config"] = handler.resized(config[key]["config"], widths)
        return config


@dataclass(frozen=True)
class _Given:
    """The tensors of a call: what it runs over, what it begins with, and all others."""

    sequences: Tensor
    states: list[Tensor]
    others: list[Tensor]


def _arguments(call: Call, inputs: tuple[Tensor, ...]) -> _Given:
    made = dict(zip(call.inputs, inputs, strict=True))

    def tensors(value: Any) -> list[Tensor]:
        flat = keras.tree.flatten(value)
        return [made[x] if isinstance(x, TensorRef) else Tensor(np.shape(x)) for x in flat if x is not None]

    given = inspect.signature(call.op.call).bind(*call.args, **call.kwargs).arguments
    # Cells call them `inputs` and `states`.
    sequences, *packed = tensors(given.pop(next(iter(given))))
    states = packed + tensors(given.pop("initial_state", given.pop("states", None)))
    return _Given(sequences, states, [x for value in given.values() for x in tensors(value) if x.tracked])


def _width(cell: Any) -> int:
    return cell.recurrent_kernel.shape[-2]


def _state_sizes(cell: Any) -> list[int]:
    # A convolutional cell has two states, and does not say so.
    sizes = keras.tree.flatten(cell.state_size)
    return sizes if sizes != [-1] else [-1, -1]


def _names(call: Call, cell: Any) -> dict[str, str]:
    """{weight of a cell: what it is called among those of the layer}."""
    known = {id(variable): name for name, variable in named_weights(call.op).items()}
    found = {name: getattr(cell, name, None) for name in ("kernel", "recurrent_kernel", "bias")}
    return {name: known[id(variable)] for name, variable in found.items() if variable is not None}


def _bind(call: Call, cell: Any, read: np.ndarray, units: np.ndarray, t: Tracer) -> None:
    """Bind the weights of a cell that reads some channels and makes others."""
    names, shape = _names(call, cell), call.output_shapes[0]
    *window, width, columns = cell.recurrent_kernel.shape
    gates = np.tile(units, columns // width)
    # On the time axis, which a cell alone lacks; and of what is convolved, at every position.
    steps = volume(call.input_shapes[0][1:-1][:1]) * volume(shape[len(shape) - 1 - len(window) : -1])
    for name, ids in (("kernel", read), ("recurrent_kernel", units)):
        t.bind(call.path, names[name], len(window), ids, "input")
        t.bind(call.path, names[name], len(window) + 1, gates, "filter")
        t.spend(call.path, steps * volume(tuple(window)) * columns // width, ids, units)
    if "bias" in names:
        t.bind(call.path, names["bias"], len(cell.bias.shape) - 1, gates)
    for activation in (cell.activation, getattr(cell, "recurrent_activation", None)):
        pin_mixing(call, activation, units, t)


def _kept(r: Resize, cell: Any) -> int:
    """Units of a cell that stay."""
    name = _names(r.call, cell)["recurrent_kernel"]
    (ids,) = (bind.ids for bind in r.binds if bind.weight == name and bind.role == "input")
    return int(r.alive[ids].sum())
