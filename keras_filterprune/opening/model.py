"""open_model: a subclassed model, or one with composite layers, as a graph of plain layers, channels last."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_filterprune.errors import UnsupportedModelError
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.graph.types import ModelView
from keras_filterprune.opening.assemble import Assembler
from keras_filterprune.opening.batch import batch_size_for
from keras_filterprune.opening.branches import branching, same_graph
from keras_filterprune.opening.channels_last import channels_last_view
from keras_filterprune.opening.errors import CannotOpenError
from keras_filterprune.opening.inputs import batch_of, call_once, check_spec, optional_inputs, specs_of
from keras_filterprune.opening.kinds import (
    differs_in_training,
    has_graph,
    is_composite,
    is_idle,
    is_over_time,
    takes,
    why_leaf,
)
from keras_filterprune.opening.over_time import OverTime
from keras_filterprune.opening.proof import difference_of
from keras_filterprune.opening.trace import Trace
from keras_filterprune.opening.where import where
from keras_filterprune.probe.execute import random_inputs
from keras_filterprune.rebuild.lost import lost_with
from keras_filterprune.rebuild.unsaved import unsaved


def open_model(model: keras.Model, input_spec: Any = None) -> keras.Model:
    """Turn a subclassed model, or one with layers made of other layers, into a graph of plain layers.

    The `call()` of the model and of every layer that is made of layers and operations runs once, on symbolic tensors.
    What it calls becomes a functional model with clones of the layers, named by their paths, and with layers for the
    weights that composite layers hold themselves. It is compared with the original on a batch: outputs in inference and
    in training, and the gradients of a step. A kernel of a convolution that is computed of weights at each call, by
    weight standardisation say, becomes a kernel like any other, with the value that it has: training goes on with that.
    A model in channels_first becomes one that computes channels last, with its inputs and outputs transposed. All that
    prunes opens models by itself; this gives the opened one.

    Args:
        model: a subclassed, functional or Sequential model. It is not modified, but for the weights of one that has not
            been called: they are made.
        input_spec: shapes with the batch first, `keras.Input`s, or a batch of data to take shapes from and to compare
            on, in the structure of the inputs; needed by subclassed models that have not been called (None).

    Returns:
        A functional `keras.Model`, compiled like the original if that was; layers that cannot be opened stay as they
        are. The model itself where there is nothing to open.

    Raises:
        UnsupportedModelError: the `call()` of the model itself cannot be followed, or what it takes is not known.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> class Block(keras.layers.Layer):
        ...     def __init__(self, filters, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.conv = keras.layers.Conv2D(filters, 3, padding="same")
        ...         self.norm = keras.layers.BatchNormalization()
        ...     def call(self, x):
        ...         return keras.ops.relu(self.norm(self.conv(x)))
        ...
        >>> x = keras.Input((8, 8, 3))
        >>> model = keras.Model(x, keras.layers.Dense(2)(Block(4, name="block")(x)))
        >>> [layer.name for layer in kfp.open_model(model).layers][1:3]
        ['block_conv', 'block_norm']
    """
    return opened_view(model, input_spec).model


def opened_view(model: keras.Model, input_spec: Any = None) -> ModelView:
    """The flat view of a model, opened where there is something to open, its channels last; `view.model` is viewed."""
    return channels_last_view(_opened_view(model, input_spec))


def _opened_view(model: keras.Model, input_spec: Any) -> ModelView:
    if has_graph(model):
        check_spec(model, input_spec)
        view = view_model(model)
        composites = {id(call.op): call.op for call in view.calls if is_composite(call.op) or is_over_time(call.op)}
        closed = {key: why for key, op in composites.items() if (why := why_leaf(op))}
        if len(closed) == len(composites):
            return _with_reasons(view, closed)
    elif not isinstance(model, keras.Model) or isinstance(model, keras.Sequential):
        # Says what is wrong with it.
        return view_model(model)
    try:
        return _Opening(model, input_spec).view()
    # A model with a graph can be worked on as it is, whatever the user's code raises.
    except Exception as error:
        if not has_graph(model):
            raise
        why = str(error) if isinstance(error, UnsupportedModelError) else where(error)
        return _with_reasons(view, {key: closed.get(key, f"cannot be: {why}") for key in composites})


_BRANCHES = "does something else in training, by an `if training:` in its call()"
_INFERENCE = (
    "What it does in inference can be pruned: keras.Model(x, model.call(x, training=False)), of a keras.Input x."
)
_REMEDY = (
    "Write its call() with Keras layers and keras.ops alone, or as a functional model: keras.Model(inputs, outputs)."
)


@dataclass
class _Opening:
    """One model that is opened."""

    model: keras.Model
    input_spec: Any

    def __post_init__(self):
        self._specs = specs_of(self.model, self.input_spec)
        self._open = has_open_batch(self._specs)
        if not self.model.built:
            try:
                call_once(self.model, self._specs)
            # The user's code, on inputs that may be wrong.
            except Exception as error:
                raise self._refused(where(error)) from error
        weights = {n for variable in self.model.weights for n in variable.shape}
        sides = {n for t in keras.tree.flatten(self._specs) for n in t.shape if n}
        self._batch = batch_size_for({n for n in weights | sides if n}) if self._open else None
        self._closed: dict[int, str] = {}
        self._over_time = OverTime()

    def view(self) -> ModelView:
        """The view of the opened model; layers that stand in the way stay closed, one after the other."""
        made = self._assembled()
        if made is not None and (found := self._difference(*made)):
            made = self._without_what_differs(found)
        if made is None:
            return _with_reasons(view_model(self.model), self._closed)
        opened, assembler = made
        notes = assembler.compile(self.model, opened)
        closed = {id(assembler.twins[key]): why for key, why in self._closed.items() if key in assembler.twins}
        view = _with_reasons(view_model(opened), closed)
        notes = [*self._training_note(view), *assembler.notes(), *notes]
        said = (*lost_with(self.model), *unsaved(opened, self.model), *notes)
        return replace(view, origin=self.model, notes=said)

    def _training_note(self, view: ModelView) -> list[str]:
        """What `fit()` does otherwise with a model that is not told that it trains."""
        told = [call.path for call in view.calls if call.inputs and differs_in_training(call.op)]
        if has_graph(self.model) or takes(self.model, "training") or not told:
            return []
        return [
            f"{type(self.model).__name__}.call() has no argument `training`, so that fit() runs '{told[0]}' as in "
            "inference; in the opened model it trains."
        ]

    def _assembled(self) -> tuple[keras.Model, Assembler] | None:
        """The opened model, and what made it; None where no layer can be opened."""
        while True:
            before = len(self._closed)
            try:
                trace, traced = self._traced()
            except Exception as error:
                raise self._refused(where(error)) from error
            if has_graph(self.model) and not self._opened_layers:
                return None
            assembler = Assembler(traced, trace.paths, self._batch, self._adding)
            try:
                return assembler.opened(self.model), assembler
            except CannotOpenError as error:
                self._close_owners(trace, assembler.failed)
                if len(self._closed) == before:
                    raise self._refused(str(error)) from error

    def _traced(self) -> tuple[Trace, keras.Model]:
        """The trace of the model in training, which holds for inference as well."""
        closed = dict(self._closed)
        while True:
            known = len(closed)
            traces = [self._trace(training, closed) for training in (False, True)]
            graphs = [trace.run(self.model) for trace in traces]
            if same_graph(*graphs):
                break
            for layer in branching(*traces):
                if layer is not self.model:
                    closed.setdefault(id(layer), _BRANCHES)
            if len(closed) == known:
                raise CannotOpenError(_BRANCHES)
        self._closed = closed
        self._adding = traces[0].adding
        self._opened_layers = [layer for layer, _, _ in traces[1].owners if layer is not self.model]
        return traces[1], graphs[1]

    def _trace(self, training: bool, closed: dict[int, str]) -> Trace:
        inputs = self._inputs()
        may_be_missing = optional_inputs(self.model) if has_graph(self.model) else []
        optional = [keras.tree.flatten(inputs)[n] for n in may_be_missing]
        return Trace(inputs, training, closed, optional, self._over_time)

    def _inputs(self) -> Any:
        def symbolic(spec: Any) -> Any:
            batch = self._batch if self._open else spec.shape[0]
            return keras.Input(batch_shape=(batch, *spec.shape[1:]), dtype=spec.dtype, name=spec.name)

        return keras.tree.map_structure(symbolic, self._specs)

    def _close_owners(self, trace: Trace, failed: Iterable[tuple[Any, str]]) -> None:
        """Close the innermost opened layers whose operations cannot be had for any batch."""
        for op, why in failed:
            for layer, inputs, outputs in trace.owners:
                if layer is not self.model and op in trace.operations(inputs, outputs):
                    self._closed.setdefault(id(layer), why)
                    break

    def _difference(self, opened: keras.Model, assembler: Assembler) -> str:
        inputs = batch_of(self.input_spec, opened) or random_inputs(view_model(opened))
        single = isinstance(self.model, keras.Sequential)
        structure = inputs[0] if single else keras.tree.pack_sequence_as(self._specs, inputs)
        try:
            return difference_of(self.model, opened, assembler.origins, structure)
        # What cannot be run on a batch like that cannot be proven.
        except Exception as error:  # noqa: BLE001
            return f"it could not be compared on a batch of random numbers: {where(error)}"

    def _without_what_differs(self, found: str) -> tuple[keras.Model, Assembler] | None:
        """The opened model with as few kinds of layers closed as make it equal."""
        if not has_graph(self.model) and not self._kinds():
            raise self._refused(f"as a graph of layers does not do the same: {found}")
        known = dict(self._closed)
        for kinds in [[kind] for kind in self._kinds()] + [self._kinds()]:
            self._closed = dict(known)
            for layer in self._opened_layers:
                if type(layer) in kinds:
                    self._closed.setdefault(id(layer), f"as a graph of layers, {found}")
            made = self._assembled()
            if made is None or not self._difference(*made):
                return made
        raise self._refused(f"as a graph of layers does not do the same: {found}")

    def _kinds(self) -> list[type]:
        return list(dict.fromkeys(type(layer) for layer in self._opened_layers))

    def _refused(self, why: str) -> UnsupportedModelError:
        name = type(self.model).__name__
        return UnsupportedModelError(
            f"model '{self.model.name}' ({name}) cannot be opened into a graph of layers: {name} {why.rstrip('.')}. "
            f"{_INFERENCE if why == _BRANCHES else _REMEDY}"
        )


def _with_reasons(view: ModelView, closed: dict[int, str]) -> ModelView:
    """The view with {id of a layer: why it was not opened}, where layers stand in the way of anything."""
    if not closed:
        return view
    sides = any(None in t.shape[1:] for t in view.model.inputs)
    help_ = ". Its inputs leave sides open; with known ones, kfp.open_model(model, input_spec=...), it may open" * sides
    calls = (
        replace(call, closed=closed[id(call.op)] + help_) if id(call.op) in closed and not is_idle(call.op) else call
        for call in view.calls
    )
    return replace(view, calls=tuple(calls))


def has_open_batch(specs: Any) -> bool:
    """Whether inputs leave the size of the batch open."""
    return all(tensor.shape[0] is None for tensor in keras.tree.flatten(specs))
