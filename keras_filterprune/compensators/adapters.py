"""Adapters: 1x1 convolutions before and after a convolution, which take over what its filters did (LRF, FP-OMP)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.compensators.base import Compensator
from keras_filterprune.compensators.least_squares import LeastSquares
from keras_filterprune.graph.types import Call, ModelView, TensorRef
from keras_filterprune.handlers.convolution import Conv
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.handlers.registry import handler_for, known_linear
from keras_filterprune.probe.regression import coefficients

BEFORE, AFTER = "_before", "_after"


@dataclass(frozen=True, eq=False)
class Adapted:
    """A convolution with an adapter before it, one behind it, or both: calls whose kernels multiply."""

    before: Call | None
    core: Call
    after: Call | None


def adapted_convolutions(view: ModelView) -> dict[str, Adapted]:
    """{path of the convolution: it and its adapters}, recognised by their names and by what they are."""
    calls = Counter(call.path for call in view.calls)
    number_of = {call.path: number for number, call in enumerate(view.calls) if calls[call.path] == 1}
    read = Counter([ref for call in view.calls for ref in call.inputs] + list(view.outputs))

    def adapter(path: str, core: int) -> Call | None:
        """The call of this name, if it is an adapter of a convolution."""
        number = number_of.get(path)
        if number is None or not {number, core} <= convolutions:
            return None
        call, op = view.calls[number], view.calls[core].op
        source, target = (number, core) if path.endswith(BEFORE) else (core, number)
        # A plain convolution that hands its outputs to the other one, and to nothing else.
        chained = view.calls[target].inputs == (TensorRef(source, 0),) and read[TensorRef(source, 0)] == 1
        pointwise = type(call.op) is type(op) and {*call.op.kernel_size, *call.op.strides} == {1}
        return call if chained and pointwise and not _ends(view.calls[source].op) else None

    operations = {number: view.calls[number].op for number in number_of.values()}
    convolutions = {number for number, op in operations.items() if is_convolution(op) and op.groups == 1}
    found = {}
    for path, core in number_of.items():
        before, after = (adapter(path + suffix, core) for suffix in (BEFORE, AFTER))
        if before is not None or after is not None:
            found[path] = Adapted(before, view.calls[core], after)
    return found


def _ends(op: Any) -> bool:
    """Whether a convolution does more than multiply, so that its kernel and the next one are no product."""
    return op.use_bias or op.activation not in (None, keras.activations.linear)


def is_convolution(op: Any) -> bool:
    """Whether a layer is a convolution whose configuration is that of Keras'."""
    return isinstance(handler_for(op), Conv)


class Adapters(Compensator):
    """Wrap every convolution in 1x1 convolutions and prune between them, as FP-OMP and LRF do.

    Outside the adapters no tensor changes, so that channels are not coupled. A removed filter f_j ~ sum_l L_jl f_l is
    made up for by the 1x1 convolution behind, T'_l = T_l + sum_j L_jl T_j, a removed input slice by the one before,
    from the weights alone; both are exact up to what the filters do not have in common (Purohit et al. 2022, Joo et al.
    2021). Where there is data, `LeastSquares` then refits all three. Adapters stay where they save multiplications,
    elsewhere they are merged into the kernel.

    Convolutions with a window, in one group and called once, are wrapped, all but the first of the model; every other
    layer stays whole. A convolution that has one adapter gets the other: so sides can be pruned one after the other,
    each on what training made of the kernel, as in the papers.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.layers.Conv2D(8, 3, name="a"), keras.layers.Conv2D(8, 3, name="b"), keras.layers.Flatten()]
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Dense(2)])
        >>> method = kfp.Method(kfp.criteria.FPOMP(), compensator=kfp.compensators.Adapters())
        >>> for side in ("b", "b_before"):
        ...     model = kfp.prune_model(model, method, kfp.FiltersBudget({side: 0.5}), progress=False)
        ...     # and train: model.fit(...)
        ...
        >>> [(layer.name, layer.filters) for layer in model.layers if layer.name.startswith("b")]
        [('b_before', 4), ('b', 4), ('b_after', 8)]
    """

    def apply(self, rebuilt: Rebuilt, data: Any, progress: bool = True) -> str:
        alive = rebuilt.kept.alive
        tensors = {id(call): t for call, t in zip(rebuilt.graph.view.calls, rebuilt.graph.tensors, strict=True)}
        adapted = adapted_convolutions(rebuilt.graph.view)
        for found in adapted.values():
            kernel = known_linear(found.core.op).slices
            (inputs, *_), (outputs, *_) = tensors[id(found.core)]
            kept_in, kept_out = (np.flatnonzero(alive[t.ids]) for t in (inputs, outputs))
            if found.after is not None:
                filters = kernel.reshape(-1, kernel.shape[-1])
                onto = coefficients(filters.T @ filters, kept_out)
                known_linear(rebuilt.twin(found.after)).assign(onto.T @ known_linear(found.after.op).slices[0])
            if found.before is not None:
                # The input slices are those of the filters that stay.
                slices = np.moveaxis(kernel[..., kept_out], 1, -1).reshape(-1, kernel.shape[1])
                into = coefficients(slices.T @ slices, kept_in)
                known_linear(rebuilt.twin(found.before)).assign(known_linear(found.before.op).slices[0] @ into)
        done = f"1x1 convolutions around {len(adapted)} layers make up for removed filters and inputs"
        return done if data is None else f"{done}; {LeastSquares().apply(rebuilt, data, progress)}"
