"""Clone a model, equal or with some of its channels missing: every copy that the library makes is made here."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import SurgeryError, UnsupportedModelError
from keras_filterprune.graph.compiled import warn_of_own_training
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.keras_view import first_line, functional_class, named_weights, view_model, weight_flags
from keras_filterprune.graph.live import LiveObjects, has_config
from keras_filterprune.graph.types import ModelView
from keras_filterprune.handlers.base import Handler, Resize
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.handlers.registry import handler_for, resized
from keras_filterprune.rebuild.compiled import compile_like
from keras_filterprune.rebuild.copies import copied
from keras_filterprune.rebuild.lost import lost_with
from keras_filterprune.rebuild.mesh import check_mesh
from keras_filterprune.rebuild.state import build_like, carry_state, copy_trainable, copy_weights, prepare, undrawn
from keras_filterprune.rebuild.unsaved import unsaved
from keras_filterprune.rebuild.verify import compare_models


def rebuild(model: keras.Model, kept: Kept) -> Rebuilt:
    """Build the model that is left when every group keeps only the given units.

    Args:
        model: the model that `kept.graph` was read from; it is not changed.
        kept: the units that stay.

    Returns:
        A `Rebuilt`; names, dtype policies, trainable flags, regularizers and the compile configuration are kept.

    Raises:
        InvalidValueError: a width cannot be divided among the devices that share a weight.
    """
    check_mesh(kept)
    graph = kept.graph
    binds = graph.binds_of
    resizes = {
        number: Resize(call, inputs, outputs, kept.alive, binds.get(call.path, ()))
        for number, (call, (inputs, outputs)) in enumerate(zip(graph.view.calls, graph.tensors, strict=True))
        if call.inputs
    }
    resizer = _Resizer(kept, {id(r.call.op): r for r in resizes.values() if r.changed})
    rebuilt = Rebuilt(kept, resizer.uncompiled(model), resizer.twins, resizes)
    rebuilt.notes.extend(resizer.compile(model, rebuilt.model))
    rebuilt.notes.extend(graph.view.notes or [*lost_with(model), *unsaved(rebuilt.model, model)])
    warn_of_own_training(graph.view)
    return rebuilt


def clone(model: keras.Model) -> keras.Model:
    """An equal model with weights and state of its own, not compiled."""
    return Cloner(view_model(model)).result(model, compiled=False)


@contextlib.contextmanager
def _lent(policy: Any) -> Iterator[None]:
    """Models and inputs take the global dtype policy when made: lend them this one."""
    outside = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(outside)


def scope_of(model: keras.Model) -> contextlib.AbstractContextManager:
    """Where a model's variables are made: under the distribution strategy that it was made under, if it was."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


class Cloner:
    """Clones a model layer by layer; subclasses put other layers in the place of some.

    Args:
        view: of the model.

    Attributes:
        twins: id of every original operation -> its clone.
        gone: ids of operations without one.
        tolerance: how far the clone's outputs may be from the original's, relative to the largest (1e-4, 2e-2 in
            float16, 1e-1 in bfloat16).
    """

    gone: frozenset[int] = frozenset()
    tolerance: float | None = None

    def __init__(self, view: ModelView):
        self.view = view
        self.twins: dict[int, Any] = {}
        self.live = LiveObjects(self.operation)
        self._made: list[tuple[Any, Any]] = []
        self._initializers: list[tuple[Any, dict[str, Any]]] = []

    def result(self, model: keras.Model, compiled: bool = True) -> keras.Model:
        """The clone with weights, state and trainable flags, and compiled like the original if that is and if asked to.

        Raises:
            SurgeryError: it computes something else.
        """
        twin = self.uncompiled(model)
        self.check(model, twin)
        for note in self.compile(model, twin) if compiled else ():
            warnings.warn(note, stacklevel=3)
        if compiled:
            warn_of_own_training(self.view)
        return twin

    def uncompiled(self, model: keras.Model) -> keras.Model:
        """The clone with weights, state and trainable flags."""
        with scope_of(model):
            with _lent(self.policy(model)):
                twin = self.model(model)
            for old, new in self._made:
                if id(old) not in self.gone:
                    build_like(old, new)
                    self.fill(old, new)
            self.write()
        for layer, initializers in self._initializers:
            for name, value in initializers.items():
                setattr(layer, name, value)
        copy_trainable(model, twin, self.twins)
        return twin

    def policy(self, model: keras.Model) -> Any:
        """The dtype policy of the clone."""
        return model.dtype_policy

    def compile(self, model: keras.Model, twin: keras.Model) -> list[str]:
        """Compile the clone like the original, if that is compiled; returns what could not be carried over."""
        if not model.compiled:
            return []
        pairs = [(named_weights(old), named_weights(new)) for old, new in self._made if id(old) not in self.gone]
        variables = {id(old[name]): new[name] for old, new in pairs for name in old}
        with scope_of(model):
            return compile_like(model, twin, variables)

    def check(self, model: keras.Model, twin: keras.Model) -> None:
        """Compare the outputs of the two."""
        compare_models(self.view, model, twin, self.tolerance)

    def write(self) -> None:
        """Assign the weights of layers that are no clones."""

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
        """New flat inputs of a (nested) model; clone_model's own would lose `optional`, `sparse` and the names."""
        plain = keras.Model(model.inputs, model.outputs) if isinstance(model, keras.Sequential) else model
        layers = {id(op.output): op for op in plain.operations if isinstance(op, keras.layers.InputLayer)}
        inputs = []
        for index, tensor in enumerate(model.inputs):
            layer, shape = layers[id(tensor)], self.input_shape(model, index)
            # Without a name of its own, a tensor and its layer are called differently.
            twin = keras.KerasTensor(shape, dtype=tensor.dtype, sparse=bool(tensor.sparse), name=tensor.name)
            inputs.append(keras.Input(tensor=twin, name=layer.name, optional=bool(layer.optional)))
        return inputs

    def input_shape(self, model: keras.Model, index: int) -> tuple[int | None, ...]:
        """Shape of a flat input of the clone of a (nested) model."""
        return tuple(model.inputs[index].shape)

    def operation(self, op: Any) -> Any:
        if id(op) not in self.twins:
            if isinstance(op, keras.Model) and getattr(op, "inputs", None):
                return self.model(op)
            self.twins[id(op)] = self._clone(op)
        return self.twins[id(op)]

    def _clone(self, op: Any) -> Any:
        try:
            return self.made(op, self.config(op))
        # Whatever the get_config() of a user's class raises.
        except Exception as error:
            if not isinstance(op, keras.layers.Layer):
                # An operation made with a function or a tensor: it holds no state, and can serve the clone as well.
                return op
            if isinstance(op, keras.Model) or not op.built:
                raise UnsupportedModelError(
                    f"'{op.name}' ({type(op).__name__}) cannot be rebuilt from its get_config(): {first_line(error)} "
                    "It must return the arguments of the constructor; Keras cannot load a saved copy of it either."
                ) from error
        twin = copied(op, self.name_of(op))
        self._made.append((op, twin))
        return twin

    def name_of(self, op: Any) -> str:
        """The name of an operation's clone."""
        return op.name

    def config(self, op: Any) -> dict[str, Any]:
        """The configuration of an operation's clone."""
        config = self.live.config(op)
        return config | {flag: there for flag, there in weight_flags(op).items() if flag in config}

    def made(self, op: Any, config: dict[str, Any], resized: bool = False) -> Any:
        """A clone of an operation, to which `fill` will give its weights."""
        twin = self.live.build(type(op), config)
        if isinstance(op, keras.layers.Layer):
            # A layer that leaves get_config() to Keras does not say what it is called.
            twin.name = self.name_of(op)
            self._initializers.append((twin, undrawn(twin)))
        prepare(op, twin, resized)
        self._made.append((op, twin))
        return twin

    def fill(self, old: Any, new: Any) -> None:
        """Give a clone the original's weights and state."""
        copy_weights(old, new)
        carry_state(old, new)

    def call(self, twin: Any, *args, **kwargs) -> Any:
        return twin(*args, **kwargs)


class _Resizer(Cloner):
    """Clones a model with resized layers.

    Args:
        kept: the units of the model that stay.
        changed: {id of an operation: what happens to its channels}.
    """

    def __init__(self, kept: Kept, changed: dict[int, Resize]):
        super().__init__(kept.graph.view)
        self.kept = kept
        self.changed = changed
        self._rewrites: dict[int, tuple[Handler, Resize]] = {}
        self._paths = {id(call.op): call.path for call in self.view.calls}
        self._masks: dict[tuple[str, str], list[tuple[int, np.ndarray]]] = {}
        for bind in kept.graph.binds:
            if not (stays := kept.alive[bind.ids]).all():
                self._masks.setdefault((bind.layer, bind.weight), []).append((bind.axis, stays))

    def input_shape(self, model: keras.Model, index: int) -> tuple[int | None, ...]:
        shape = list(super().input_shape(model, index))
        fed = self.view.nested_inputs.get(id(model))
        traced = self.kept.graph.tensors[fed[index].call][1][fed[index].index] if fed else None
        if traced is not None and traced.axis is not None and shape[traced.axis] is not None:
            shape[traced.axis] = int(self.kept.alive[traced.ids].sum())
        return tuple(shape)

    def _clone(self, op: Any) -> Any:
        r = self.changed.get(id(op))
        handler = handler_for(op)
        if r is None or (type(handler).resize is Handler.resize and not named_weights(op) and not has_config(op)):
            twin = super()._clone(op)
            if r is not None:
                self._rewrites[id(twin)] = handler, r
            return twin
        config = without_old_shapes(copy.deepcopy(self.config(op)))
        config = resized(op, config, r)
        try:
            twin = self.made(op, config, resized=True)
        except (TypeError, ValueError) as error:
            raise SurgeryError(
                f"surgery failed: layer '{op.name}' ({type(op).__name__}) refuses its smaller configuration: "
                f"{first_line(error)} Its handler is wrong; exclude the layer and report it."
            ) from error
        self._rewrites[id(twin)] = handler, r
        return twin

    def call(self, twin: Any, *args, **kwargs) -> Any:
        if id(twin) in self._rewrites:
            handler, r = self._rewrites[id(twin)]
            args, kwargs = handler.rewrite(args, kwargs, r)
        try:
            return super().call(twin, *args, **kwargs)
        except ValueError as error:
            raise SurgeryError(
                f"surgery failed at '{twin.name}' ({type(twin).__name__}), which does not take its smaller inputs: "
                f"{first_line(error)} The handler of a layer before it is wrong; exclude that layer and report it."
            ) from error

    def fill(self, old: Any, new: Any) -> None:
        path, variables = self._paths.get(id(old), ""), named_weights(new)
        for name, variable in named_weights(old).items():
            # A copy: on JAX, training deletes the arrays it started from.
            value = keras.ops.convert_to_numpy(variable.value).copy()
            for axis, mask in self._masks.get((path, name), ()):
                value = np.compress(mask, value, axis)
            if tuple(variables[name].shape) != tuple(value.shape):
                kind = type(old)
                whose = f"The handler of {kind.__name__} is wrong; does its `resize` set the new width?"
                if kind.__module__.startswith("keras."):
                    whose = "The handler of a layer before it is wrong; does its `trace` pass on the channels it gets?"
                raise SurgeryError(
                    f"surgery failed: weight '{name}' of layer '{path}' is left with shape {tuple(value.shape)}, the "
                    f"rebuilt layer expects {tuple(variables[name].shape)}. {whose}"
                )
            variables[name].assign(value)
            variables[name].trainable = variable.trainable
        carry_state(old, new, id(old) in self.changed)


def without_old_shapes(config: Any) -> Any:
    """A layer configuration without what fits the old shape alone: recorded builds, constant-array initializers."""
    if isinstance(config, dict):
        if config.get("class_name") == "Constant" and np.ndim(_plain(config["config"].get("value"))):
            return keras.initializers.serialize(keras.initializers.Zeros())
        return {key: without_old_shapes(value) for key, value in config.items() if key != "build_config"}
    return [without_old_shapes(value) for value in config] if type(config) is list else config


def _plain(value: Any) -> Any:
    return value["config"]["value"] if isinstance(value, dict) and "config" in value else value
