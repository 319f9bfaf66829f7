"""Models in channels_first computed channels last: what they take and give stays, transposed behind and before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import keras

from keras_filterprune.errors import SurgeryError, UnsupportedModelError
from keras_filterprune.graph.keras_view import first_line, substitute, view_model
from keras_filterprune.graph.types import Call, ModelView, TensorRef
from keras_filterprune.handlers.activation import Activation, Elementwise
from keras_filterprune.handlers.registry import handler_for, keras_class
from keras_filterprune.rebuild.clone import Cloner
from keras_filterprune.rebuild.state import carry_state, copy_weights

L = keras.layers
_FIRST = "channels_first"
# Layers whose axis is a number, of one axis alone.
_ALONG_AXIS = (
    L.BatchNormalization, L.LayerNormalization, L.RMSNormalization, L.GroupNormalization, L.UnitNormalization,
    L.Concatenate, L.Softmax,
)  # fmt: skip


def channels_last_view(view: ModelView) -> ModelView:
    """The view of an equal model whose layers have their channels last; the view itself where all have.

    Raises:
        UnsupportedModelError: a layer has its channels on another axis than the first behind the batch.
    """
    if not any(_is_first(call) for call in view.calls):
        return view
    cloner = _ChannelsLast(view)
    twin = cloner.uncompiled(view.model)
    notes = [*view.notes, *cloner.compile(view.model, twin)]
    notes.append(
        "It computed in channels_first, and computes channels last now: its inputs and outputs are transposed."
    )
    try:
        cloner.check(view.model, twin)
    except SurgeryError:
        raise
    # Whatever a backend raises that has no kernels for this format.
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        notes.append(f"The original does not run here, so that the two could not be compared: {first_line(error)}")
    closed = {cloner.twins[id(call.op)]: call.closed for call in view.calls if call.closed}
    found = view_model(twin)
    calls = tuple(replace(call, closed=closed.get(call.op, "")) if call.inputs else call for call in found.calls)
    return replace(found, calls=calls, notes=tuple(notes))


class _Laid(NamedTuple):
    """A tensor, and whether its channels were moved behind all other axes."""

    tensor: Any
    moved: bool


class _ChannelsLast(Cloner):
    """Calls clones on tensors with their channels last as far as they go, and moves them back for all others."""

    def __init__(self, view: ModelView):
        super().__init__(view)
        self._root: Any = None
        self._names = {id(call.op): call.path.replace("/", "_") for call in view.calls if call.inputs}
        self._follows: dict[int, bool] = {}

    def uncompiled(self, model: keras.Model) -> keras.Model:
        self._root = model
        return super().uncompiled(model)

    def name_of(self, op: Any) -> str:
        return self._names.get(id(op), op.name)

    def config(self, op: Any) -> dict[str, Any]:
        config = super().config(op) | {"name": self.name_of(op)}
        if not self._follows.get(id(op)):
            return config
        if "axis" in config and keras_class(op) in _ALONG_AXIS:
            config["axis"] = _moved_axis(config["axis"], self._ranks[id(op)])
        return config | ({"data_format": "channels_last"} if "data_format" in config else {})

    def fill(self, old: Any, new: Any) -> None:
        copy_weights(old, new)
        # What says where channels are is not carried over.
        carry_state(old, new, resized=self._follows.get(id(old), False))

    def model(self, model: keras.Model) -> keras.Model:
        if model is not self._root:
            return super().model(model)
        calls = [call for call in self.view.calls if call.inputs]
        self._ranks = {id(call.op): len(call.input_shapes[0]) for call in calls}
        inputs = self.inputs(model)
        laid = {ref: _Laid(x, False) for ref, x in zip(self.view.inputs, inputs, strict=True)}
        for number, call in enumerate(self.view.calls):
            if call.inputs:
                outputs, moved = self._applied(call, laid)
                for index, x in enumerate(keras.tree.flatten(outputs)):
                    laid[TensorRef(number, index)] = _Laid(x, moved and len(x.shape) > 2)
        outputs = [self._first(laid[ref]) for ref in self.view.outputs]
        single = isinstance(model, keras.Sequential)
        twin = keras.Model(
            inputs[0] if single else keras.tree.pack_sequence_as(model.input, inputs),
            outputs[0] if single else keras.tree.pack_sequence_as(model.output, outputs),
            name=model.name,
        )
        self.twins[id(model)] = twin
        return twin

    def _applied(self, call: Call, laid: dict[TensorRef, _Laid]) -> tuple[Any, bool]:
        """The outputs of a call, and whether their channels are last."""
        follows = self._follows.setdefault(id(call.op), self._can_follow(call, [laid[ref] for ref in call.inputs]))
        place = self._last if follows else self._first
        args, kwargs = substitute((call.args, call.kwargs), {ref: place(laid[ref]) for ref in call.inputs})
        return self.operation(call.op)(*args, **kwargs), follows

    def _can_follow(self, call: Call, given: list[_Laid]) -> bool:
        """Whether a call gives the same, moved, for what is moved."""
        if _is_first(call):
            if keras_class(call.op) in (L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D):
                raise UnsupportedModelError(
                    f"layer '{call.path}' has its channels behind the axis of time (data_format='channels_first'), and "
                    "no other layer has; give it data_format='channels_last'."
                )
            return True
        if not any(x.moved for x in given) or len({len(shape) for shape in call.input_shapes}) > 1:
            return False
        if keras_class(call.op) in _ALONG_AXIS:
            return isinstance(call.op.axis, int) or len(call.op.axis) == 1
        constants = any(getattr(x, "shape", ()) for x in keras.tree.flatten((call.args, call.kwargs)))
        elementwise = type(handler_for(call.op)) in (Elementwise, Activation)
        return elementwise and not constants and getattr(call.op, "noise_shape", None) is None

    def _last(self, x: _Laid) -> Any:
        rank = len(x.tensor.shape)
        return x.tensor if x.moved or rank < 3 else L.Permute((*range(2, rank), 1))(x.tensor)

    def _first(self, x: _Laid) -> Any:
        rank = len(x.tensor.shape)
        return L.Permute((rank - 1, *range(1, rank - 1)))(x.tensor) if x.moved else x.tensor


def _is_first(call: Call) -> bool:
    return bool(call.inputs) and getattr(call.op, "data_format", None) == _FIRST


def _moved_axis(axis: Any, rank: int) -> Any:
    """Where an axis is once the first behind the batch is the last."""
    if not isinstance(axis, int):
        return [_moved_axis(one, rank) for one in axis]
    axis %= rank
    return axis if axis == 0 else rank - 1 if axis == 1 else axis - 1
