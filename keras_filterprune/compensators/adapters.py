"""Adapters: 1x1 convolutions before and after a convolution, which take over what its filters did (LRF, FP-OMP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_filterprune.compensators.base import Compensator
from keras_filterprune.compensators.least_squares import LeastSquares
from keras_filterprune.graph.types import Call, ModelView, TensorRef
from keras_filterprune.handlers.convolution import Conv
from keras_filterprune.handlers.linear import Linear
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.handlers.registry import handler_for, known_linear
from keras_filterprune.probe.regression import coefficients

BEFORE, AFTER = "_before", "_after"


@dataclass(frozen=True, eq=False)
class Adapted:
    """A convolution between its adapters: three calls, whose kernels multiply."""

    before: Call
    core: Call
    after: Call

    @property
    def linears(self) -> tuple[Linear, Linear, Linear]:
        """What the three multiply."""
        return known_linear(self.before.op), known_linear(self.core.op), known_linear(self.after.op)


def adapted_convolutions(view: ModelView) -> dict[str, Adapted]:
    """{path of the convolution: it and its adapters}, recognised by their names and by what they are."""
    number_of = {call.path: number for number, call in enumerate(view.calls)}
    found = {}
    for path, number in number_of.items():
        before, after = (number_of.get(path + suffix) for suffix in (BEFORE, AFTER))
        if before is None or after is None:
            continue
        adapted = Adapted(*(view.calls[n] for n in (before, number, after)))
        pointwise = is_convolution(adapted.core.op) and all(
            type(call.op) is type(adapted.core.op) and call.op.groups == 1 and set(call.op.kernel_size) == {1}
            for call in (adapted.before, adapted.after)
        )
        chained = adapted.core.inputs == (TensorRef(before, 0),) and adapted.after.inputs == (TensorRef(number, 0),)
        if pointwise and chained:
            found[path] = adapted
    return found


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
    layer stays whole.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.FPOMP(), compensator=kfp.compensators.Adapters()).compensator
        Adapters()
    """

    def apply(self, rebuilt: Rebuilt, data: Any, progress: bool = True) -> str:
        alive = rebuilt.kept.alive
        tensors = {id(call): t for call, t in zip(rebuilt.graph.view.calls, rebuilt.graph.tensors, strict=True)}
        adapted = adapted_convolutions(rebuilt.graph.view)
        for found in adapted.values():
            before, kernel, after = (linear.slices for linear in found.linears)
            (inputs, *_), (outputs, *_) = tensors[id(found.core)]
            kept_in, kept_out = (np.flatnonzero(alive[t.ids]) for t in (inputs, outputs))
            filters = kernel.reshape(-1, kernel.shape[-1])
            onto = coefficients(filters.T @ filters, kept_out)
            # The input slices are those of the filters that stay.
            slices = np.moveaxis(kernel[..., kept_out], 1, -1).reshape(-1, kernel.shape[1])
            into = coefficients(slices.T @ slices, kept_in)
            for call, matrix in ((found.before, before[0] @ into), (found.after, onto.T @ after[0])):
                known_linear(rebuilt.twin(call)).assign(matrix)
        done = f"1x1 convolutions around {len(adapted)} layers make up for removed filters and inputs"
        return done if data is None else f"{done}; {LeastSquares().apply(rebuilt, data, progress)}"
