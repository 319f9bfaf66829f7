"""Clone a model with some of its channels missing: resized layers, rewritten call arguments, copied weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import SurgeryError, UnsupportedModelError
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.keras_view import copy_value, first_line, functional_class, named_weights
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.handlers.base import Handler, Resize
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.handlers.registry import explained, handler_for


def rebuild(model: keras.Model, kept: Kept) -> Rebuilt:
    """Build the model that is left when every group keeps only the given units.

    Args:
        model: the model that `kept.graph` was read from; it is not changed.
        kept: the units that stay.

    Returns:
        A `Rebuilt`; names, dtype policies, trainable flags, regularizers and the compile configuration are kept.
    """
    graph = kept.graph
    resizes = {
        number: Resize(call, inputs, outputs, kept.alive)
        for number, (call, (inputs, outputs)) in enumerate(zip(graph.view.calls, graph.tensors, strict=True))
        if call.inputs
    }
    cloner = Cloner(kept, {id(r.call.op): r for r in resizes.values() if r.changed})
    with dtype_policy(model.dtype_policy):
        rebuilt = Rebuilt(kept, cloner.model(model), cloner.twins, resizes)
    _copy_weights(kept, cloner.twins)
    rebuilt.notes.extend(take_after(model, rebuilt.model, cloner.twins))
    # Backends that only infer have none.
    if getattr(type(model), "train_step", None) is not getattr(type(rebuilt.model), "train_step", None):
        rebuilt.notes.append(
            f"The result is a plain model: {type(model).__name__}'s own train_step() is not part of it."
        )
    return rebuilt


@contextlib.contextmanager
def dtype_policy(policy: Any) -> Iterator[None]:
    """Models and inputs take the global policy when they are made: lend them the original's."""
    outside = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(outside)


class Cloner:
    """Clones a model with resized layers.

    Args:
        kept: the units of the model that stay.
        changed: {id of an operation: what happens to its channels}.

    Attributes:
        twins: id of every original operation -> its clone.
        gone: ids of operations without one.
    """

    gone: frozenset[int] = frozenset()

    def __init__(self, kept: Kept, changed: dict[int, Resize]):
        self.graph = kept.graph
        self.alive = kept.alive
        self.changed = changed
        self.twins: dict[int, Any] = {}
        self._rewrites: dict[int, tuple[Handler, Resize]] = {}

    def model(self, model: keras.Model) -> keras.Model:
        """A clone of a (nested) model, uncompiled."""
        if isinstance(model, keras.Sequential):
            layers = [self.operation(layer) for layer in model.layers if id(layer) not in self.gone]
            twin = keras.Sequential([*self.inputs(model), *layers], name=model.name)
        else:
            # clone_model would compile the clone, and fail on custom losses: an uncompiled twin shares the layers.
            # A subclass of a functional model comes back as a plain one: saved files need no custom class.
            special = model.compiled or type(model) is not functional_class()
            plain = keras.Model(model.input, model.output, name=model.name) if special else model
            inputs = keras.tree.pack_sequence_as(model.input, self.inputs(model))
            twin = keras.models.clone_model(
                plain, input_tensors=inputs, clone_function=self.operation, call_function=self.call
            )
        self.twins[id(model)] = twin
        return twin

    def inputs(self, model: keras.Model) -> list[Any]:
        """New flat inputs of a (nested) model; clone_model's own would lose `optional` and `sparse`."""
        fed = self.graph.view.nested_inputs.get(id(model))
        plain = keras.Model(model.inputs, model.outputs) if isinstance(model, keras.Sequential) else model
        layers = {id(op.output): op for op in plain.operations if isinstance(op, keras.layers.InputLayer)}
        inputs = []
        for index, tensor in enumerate(model.inputs):
            shape = list(tensor.shape)
            traced = self.graph.tensors[fed[index].call][1][fed[index].index] if fed else None
            if traced is not None and traced.tracked and shape[traced.axis] is not None:
                shape[traced.axis] = int(self.alive[traced.ids].sum())
            layer = layers[id(tensor)]
            inputs.append(
                keras.Input(
                    batch_shape=shape,
                    dtype=tensor.dtype,
                    name=layer.name,
                    sparse=bool(tensor.sparse),
                    optional=bool(layer.optional),
                )
            )
        return inputs

    def operation(self, op: Any) -> Any:
        if id(op) not in self.twins:
            if isinstance(op, keras.Model) and getattr(op, "inputs", None):
                return self.model(op)
            self.twins[id(op)] = self._clone(op)
        return self.twins[id(op)]

    def _clone(self, op: Any) -> Any:
        r = self.changed.get(id(op))
        config = op.get_config()
        if r is not None:
            with explained():
                config = handler_for(op).resize(without_old_shapes(copy.deepcopy(config)), r)
        if isinstance(op, keras.layers.Lambda):
            return type(op).from_config(config, safe_mode=False)
        try:
            twin = type(op).from_config(config)
        except (TypeError, ValueError) as error:
            if r is not None:
                raise SurgeryError(
                    f"surgery failed: layer '{op.name}' ({type(op).__name__}) refuses its smaller configuration: "
                    f"{first_line(error)} Its handler is wrong; exclude the layer and report it."
                ) from error
            raise UnsupportedModelError(
                f"layer '{op.name}' ({type(op).__name__}) cannot be rebuilt from its get_config(): {first_line(error)} "
                "It must return the arguments of the constructor; Keras cannot load a saved copy of it either."
            ) from error
        if r is not None:
            self._rewrites[id(twin)] = handler_for(op), r
        return twin

    def call(self, twin: Any, *args, **kwargs) -> Any:
        if id(twin) in self._rewrites:
            handler, r = self._rewrites[id(twin)]
            args, kwargs = handler.rewrite(args, kwargs, r)
        try:
            return twin(*args, **kwargs)
        except ValueError as error:
            raise SurgeryError(
                f"surgery failed at '{twin.name}' ({type(twin).__name__}), which does not take its smaller inputs: "
                f"{first_line(error)} The handler of a layer before it is wrong; exclude that layer and report it."
            ) from error


class Rewriter(Cloner):
    """Clones a model layer by layer, with other layers in the place of some.

    Args:
        graph: the channel graph of the model.

    Attributes:
        written: ids of the operations whose weights `write` copies.
    """

    def __init__(self, graph: ChannelGraph):
        super().__init__(Kept(graph), {})
        self.written: set[int] = set()

    def result(self, model: keras.Model) -> keras.Model:
        """The other model, with weights, trainable flags and compile configuration."""
        with dtype_policy(model.dtype_policy):
            twin = self.model(model)
        for op in {id(call.op): call.op for call in self.graph.view.calls if call.inputs}.values():
            if id(op) not in self.written | self.gone:
                new = named_weights(self.twins[id(op)])
                for name, variable in named_weights(op).items():
                    copy_value(variable, new[name])
                if hasattr(self.twins[id(op)], "finalize_state"):
                    self.twins[id(op)].finalize_state()
        self.write()
        take_after(model, twin, self.twins)
        return twin

    def write(self) -> None:
        """Assign the weights of the layers in `written`."""


def without_old_shapes(config: Any) -> Any:
    """A layer configuration without what fits the old shape alone: recorded builds, constant-array initializers."""
    if isinstance(config, dict):
        if config.get("class_name") == "Constant" and np.ndim(_plain(config["config"].get("value"))):
            return keras.initializers.serialize(keras.initializers.Zeros())
        return {key: without_old_shapes(value) for key, value in config.items() if key != "build_config"}
    return config


def _plain(value: Any) -> Any:
    return value["config"]["value"] if isinstance(value, dict) and "config" in value else value


def _copy_weights(kept: Kept, twins: dict[int, Any]) -> None:
    masks: dict[tuple[str, str], list[tuple[int, np.ndarray]]] = {}
    for bind in kept.graph.binds:
        mask = kept.alive[bind.ids]
        if not mask.all():
            masks.setdefault((bind.layer, bind.weight), []).append((bind.axis, mask))
    for path, op in {call.path: call.op for call in kept.graph.view.calls if call.inputs}.items():
        twin = twins[id(op)]
        new = named_weights(twin)
        for name, variable in named_weights(op).items():
            # A copy: on JAX, training deletes the arrays it started from.
            value = keras.ops.convert_to_numpy(variable.value).copy()
            for axis, mask in masks.get((path, name), ()):
                value = np.compress(mask, value, axis)
            if tuple(new[name].shape) != tuple(value.shape):
                raise SurgeryError(
                    f"surgery failed: weight '{name}' of layer '{path}' is left with shape {tuple(value.shape)}, the "
                    f"rebuilt layer expects {tuple(new[name].shape)}. The handler of {type(op).__name__} is wrong."
                )
            new[name].assign(value)
            if new[name].trainable != variable.trainable:
                new[name].trainable = variable.trainable
        if hasattr(twin, "finalize_state"):
            # Normalization derives its statistics from the weights once, not at every call.
            twin.finalize_state()


def take_after(model: keras.Model, twin: keras.Model, twins: dict[int, Any]) -> list[str]:
    """Give a clone the original's trainable flags and compile configuration; returns what could not be carried."""
    _copy_trainable(model, twin, twins)
    return _compile_like(model, twin) if model.compiled else []


def _copy_trainable(old: Any, new: Any, twins: dict[int, Any]) -> None:
    """Flags from the outside in: setting a model's flag sets those of its layers."""
    if new.trainable != old.trainable:
        new.trainable = old.trainable
    for layer in old.layers:
        if id(layer) in twins:
            twin = twins[id(layer)]
            if isinstance(layer, keras.Model) and hasattr(layer, "layers"):
                _copy_trainable(layer, twin, twins)
            elif twin.trainable != layer.trainable:
                twin.trainable = layer.trainable


def _compile_like(model: keras.Model, twin: keras.Model) -> list[str]:
    """Compile with the same configuration and a fresh optimizer of it."""
    custom = {f.__name__: f for f in keras.tree.flatten(model.loss) if callable(f) and hasattr(f, "__name__")}
    try:
        with keras.saving.custom_object_scope(custom):
            twin.compile_from_config(model.get_compile_config())
    except (TypeError, ValueError) as error:
        return [
            f"The result is not compiled, because a custom object of the original's compile() is not registered "
            f"({first_line(error)}) Call compile() again."
        ]
    return []
