"""A smaller model next to the one that it came from: what surgery hands on to compensation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import keras

from keras_filterprune.checks import wrong
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.types import Call, ChannelGraph, ModelView
from keras_filterprune.handlers.base import Resize
from keras_filterprune.handlers.registry import handler_for


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """A smaller model next to the original: what a compensator is given.

    Attributes:
        kept: which units of the original stayed.
        model: the new model, with the surviving weights.
        twins: id of every original operation -> its clone, see `twin`.
        resizes: call number -> what happened to the call's channels.
        notes: what could not be carried over, in sentences.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> class Shown(kfp.compensators.Compensator):
        ...     def apply(self, rebuilt, data, progress=True):
        ...         call = rebuilt.graph.view.calls[1]
        ...         return f"{call.path}: {call.op.filters} filters, {rebuilt.twin(call).filters} stay"
        ...
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> settings = {"compensate": Shown(), "return_report": True}
        >>> kfp.prune_model(keras.Sequential(layers), "l2", 0.5, **settings)[1].compensation
        'conv: 8 filters, 4 stay'
    """

    kept: Kept
    model: keras.Model
    twins: dict[int, Any]
    resizes: dict[int, Resize]
    notes: list[str] = field(default_factory=list)

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph of the original."""
        return self.kept.graph

    def twin(self, call: Call) -> Any:
        """The layer or operation of the new model that stands in the place of the original's."""
        if not isinstance(call, Call) or id(call.op) not in self.twins:
            raise wrong("call", call, "one of rebuilt.graph.view.calls")
        return self.twins[id(call.op)]

    def smaller_view(self) -> ModelView:
        """The original's view with the call arguments of the smaller model; its operations are the `twins`."""
        calls = list(self.graph.view.calls)
        for number, r in self.resizes.items():
            if r.changed:
                args, kwargs = handler_for(r.call.op).rewrite(r.call.args, r.call.kwargs, r)
                calls[number] = replace(r.call, args=args, kwargs=kwargs)
        return replace(self.graph.view, calls=tuple(calls))
