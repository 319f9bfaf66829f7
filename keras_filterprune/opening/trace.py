"""Run the `call()` of composite layers on symbolic tensors: what they call becomes a graph of placeholders."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_filterprune.graph.keras_view import plain_call, substitute, view_model
from keras_filterprune.graph.live import has_config
from keras_filterprune.graph.types import TensorRef
from keras_filterprune.opening.errors import CannotOpenError
from keras_filterprune.opening.kinds import has_graph, is_composite, is_idle, is_over_time, takes, why_leaf
from keras_filterprune.opening.over_time import OverTime
from keras_filterprune.opening.placeholders import HeldConstant, HeldWeight, Leaf, Losses
from keras_filterprune.opening.shadows import Shadows, original
from keras_filterprune.opening.symbols import like_tensors
from keras_filterprune.opening.tensorflow_calls import tensorflow_calls
from keras_filterprune.opening.where import where


class _Mode(int):
    """What `training` is at run time: neither True nor False, so that what a model passes on is known from literals."""


@dataclass
class Trace:
    """One run of a model's `call()`.

    Attributes:
        inputs: symbolic model inputs, in the model's structure.
        training: which branch is taken where a `call()` asks.
        closed: {id of a layer: why it stays one}; layers that turn out to be closed are added.
        optional: those of the flat inputs that may be None at run time.
        over_time: the layers of models that are applied to every step of time.
        owners: (layer, its symbolic arguments, its outputs) of every layer that was opened, inner ones first.
        paths: {id of a layer: names of the layers that it is in, and its own}.
        adding: ids of layers that have added losses.
    """

    inputs: Any
    training: bool
    closed: dict[int, str]
    optional: list[Any]
    over_time: OverTime
    owners: list[tuple[Any, list[Any], list[Any]]] = field(default_factory=list)

    def __post_init__(self):
        self._anchor = keras.tree.flatten(self.inputs)[0]
        self._mode = _Mode(self.training)
        self._training: list[Any] = [self._mode]
        self._path: list[str] = []
        self._steps = False
        self._losses: list[list[Any]] = []
        self._shadows = Shadows(self.layer, self._graph, self._weight, self._add_loss)
        self._made: dict[int, Leaf] = {}
        self._weights: dict[int, Any] = {}
        self.paths: dict[int, tuple[str, ...]] = {}
        self.adding: set[int] = set()

    def run(self, model: keras.Model) -> keras.Model:
        """The graph of placeholders of a model."""
        with like_tensors(), tensorflow_calls():
            if has_graph(model):
                outputs = self._replay(model, keras.tree.flatten(self.inputs))
            else:
                outputs = self._composite(model, (self.inputs,), {})
        if not all(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(outputs)):
            raise CannotOpenError("an output depends on no input")
        return keras.Model(self.inputs, outputs, name=model.name)

    def layer(self, layer: Any, args: tuple, kwargs: dict) -> Any:
        """What a call of a layer gives; composite ones are gone into."""
        args, kwargs = keras.tree.map_structure(original, (args, kwargs))
        # Whose call() is not a graph of layers knows nothing of an axis of steps.
        composite = is_composite(layer) and not self._steps
        if id(layer) in self.closed or not (has_graph(layer) or composite or is_over_time(layer)):
            return self._leaf(layer, args, kwargs)
        if why := why_leaf(layer):
            self.closed[id(layer)] = why
            return self._leaf(layer, args, kwargs)
        self._path.append(self._name(layer))
        self.paths.setdefault(id(layer), tuple(self._path))
        try:
            if is_over_time(layer):
                return self._every_step(layer, args, kwargs)
            return self._nested(layer, args, kwargs) if has_graph(layer) else self._composite(layer, args, kwargs)
        # Whatever the user's code raises on symbolic tensors, the layer can stay what it is.
        except Exception as error:  # noqa: BLE001
            self.closed[id(layer)] = where(error)
        finally:
            self._path.pop()
        return self._leaf(layer, args, kwargs)

    def operations(self, inputs: list[Any], outputs: list[Any]) -> list[Any]:
        """What an opened layer calls, given its symbolic arguments and outputs."""
        try:
            return keras.Function(inputs, outputs).operations if inputs else []
        # A weight that it holds hangs on an input of the model.
        except ValueError:
            return keras.Function([self._anchor, *inputs], outputs).operations

    # ------------------------------------------------------------------------------------------------ composites

    def _composite(self, layer: Any, args: tuple, kwargs: dict) -> Any:
        if layer.activity_regularizer is not None:
            raise CannotOpenError("penalises its own outputs (activity_regularizer)")
        if any(x is given for given in self.optional for x in _symbols((args, kwargs))):
            raise CannotOpenError("reads an input that may be missing")
        args, kwargs = keras.tree.map_structure(lambda x: self._converted(x, layer), (args, kwargs))
        training, args, kwargs = self._training_of(layer, args, kwargs)
        if takes(layer, "training"):
            kwargs["training"] = training
        self._training.append(training)
        self._losses.append([])
        try:
            outputs = type(layer).call(self._shadows.of(layer), *args, **kwargs)
        finally:
            self._training.pop()
            losses = self._losses.pop()
        outputs = keras.tree.map_structure(lambda x: self._weight(x, layer) if _is_variable(x) else x, outputs)
        if not _symbols(outputs):
            raise CannotOpenError("what it returns depends on no input")
        if losses:
            outputs = self._with_losses(layer, outputs, losses)
        self.owners.append((layer, _symbols((args, kwargs)), _symbols(outputs)))
        return outputs

    def _add_loss(self, loss: Any) -> None:
        """Takes note of the losses of the call that is looked at."""
        self._losses[-1] += keras.tree.flatten(loss)

    def _with_losses(self, layer: Any, outputs: Any, losses: list[Any]) -> Any:
        """The outputs of a layer, of which the first one carries the losses."""
        carrier = _symbols(outputs)[0]
        self.adding.add(id(layer))
        carried = Losses(layer, tuple(self._path))(carrier, *losses)
        return keras.tree.map_structure(lambda x: carried if x is carrier else x, outputs)

    def _training_of(self, layer: Any, args: tuple, kwargs: dict) -> tuple[Any, tuple, dict]:
        """What `training` is in a call of a layer, and the other arguments."""
        names = [*inspect.signature(type(layer).call).parameters][1:]
        if "training" in names[: len(args)]:
            # Keras wants what is no tensor by its name.
            at = names.index("training")
            kwargs = dict(zip(names[at:], args[at:], strict=False)) | kwargs
            args = args[:at]
        given = kwargs.get("training")
        kwargs = {name: value for name, value in kwargs.items() if name != "training"}
        return self._training[-1] if given is None else given, args, kwargs

    def _converted(self, x: Any, layer: Any) -> Any:
        """An argument in the dtype in which the layer computes."""
        floats = isinstance(x, keras.KerasTensor) and "float" in x.dtype and layer.autocast
        return keras.ops.cast(x, layer.input_dtype) if floats and x.dtype != layer.input_dtype else x

    # ---------------------------------------------------------------------------------------------------- graphs

    def _nested(self, model: keras.Model, args: tuple, kwargs: dict) -> Any:
        return self._graph(model, args[0] if args else kwargs["inputs"], kwargs.get("training"))

    def _every_step(self, layer: Any, args: tuple, kwargs: dict) -> Any:
        """What a model that is applied to every step gives, its layers one by one."""
        if kwargs.get("mask") is not None or self._steps:
            raise CannotOpenError("is given a mask, or lies in another of its kind")
        x = args[0] if args else kwargs["inputs"]
        self._steps = True
        try:
            outputs = self._graph(layer.layer, x, kwargs.get("training"))
        finally:
            self._steps = False
        self.owners.append((layer, [x], _symbols(outputs)))
        return outputs

    def _graph(self, model: keras.Model, given: Any, training: Any) -> Any:
        if isinstance(given, dict) and not isinstance(model.input, dict):
            given = [given[tensor.name] for tensor in model.inputs]
        self._training.append(self._training[-1] if training is None else training)
        try:
            return self._replay(model, keras.tree.flatten(given))
        finally:
            self._training.pop()

    def _replay(self, model: keras.Model, inputs: list[Any]) -> Any:
        """The outputs of a model that has a graph, in its structure."""
        # The graph alone, where a call() of the model's own goes around it.
        view = view_model(model if plain_call(model) else keras.Model(model.input, model.output))
        values: dict[TensorRef, Any] = dict(zip(view.inputs, inputs, strict=True))
        for number, call in enumerate(view.calls):
            if call.inputs:
                *models, _ = call.path.split("/")
                args, kwargs = substitute((call.args, call.kwargs), values)
                # A functional model tells each of its layers what it is told, whatever a layer was called with.
                kwargs = {name: value for name, value in kwargs.items() if name != "training"}
                self._path += models
                outputs = self.layer(call.op, args, kwargs)
                del self._path[len(self._path) - len(models) :]
                values.update({TensorRef(number, i): x for i, x in enumerate(keras.tree.flatten(outputs))})
        flat = [values[ref] for ref in view.outputs]
        if isinstance(model, keras.Sequential):
            return flat[0]
        return keras.tree.pack_sequence_as(model.output, flat)

    # ---------------------------------------------------------------------------------------------------- leaves

    def _leaf(self, op: Any, args: tuple, kwargs: dict) -> Any:
        """A call of what stays a layer or an operation."""
        if self._steps:
            op = self.over_time.of(op, args, kwargs)
        if type(op) is keras.layers.Identity and not has_config(op):
            # Made with a dtype policy it can be called, but not saved.
            return args[0]
        if isinstance(op, keras.layers.Layer):
            training, args, kwargs = self._training_of(op, args, kwargs)
            if training is not self._mode and takes(op, "training") and op.trainable:
                if training or not is_idle(op):
                    raise CannotOpenError(f"calls layer '{op.name}' with training={bool(training)}, always")
                return args[0]
        if not _symbols((args, kwargs)):
            args = keras.tree.map_structure(lambda x: self._constant(x) if hasattr(x, "shape") else x, args)
        if id(op) not in self._made:
            self.paths.setdefault(id(op), (*self._path, self._name(op)))
            self._made[id(op)] = Leaf(op)
        try:
            return self._made[id(op)](*args, **kwargs)
        except (TypeError, ValueError):
            if id(op) not in self.closed:
                raise
            # It gives None among its tensors, or its shapes are those of a parent that takes other arguments.
            raise CannotOpenError(f"calls layer '{op.name}', which {self.closed[id(op)]}") from None

    def _weight(self, variable: Any, holder: Any) -> Any:
        if id(variable) not in self._weights:
            self._weights[id(variable)] = HeldWeight(variable, holder)(self._anchor)
        return self._weights[id(variable)]

    def _constant(self, value: Any) -> Any:
        return HeldConstant(value, tuple(self._path))(self._anchor)

    def _name(self, op: Any) -> str:
        """The name of a layer where the user gave it one, else of the attribute that holds it."""
        attribute = self._shadows.attributes.get(id(op))
        return attribute if attribute and re.fullmatch(rf"{_snake(type(op).__name__)}(_\d+)?", op.name) else op.name


def _snake(name: str) -> str:
    """How Keras names a layer of this class."""
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _is_variable(x: Any) -> bool:
    return isinstance(x, keras.Variable)


def _symbols(structure: Any) -> list[Any]:
    return [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]
