"""Products of a tensor and a weight that nothing else reads: layers compute them."""

from __future__ import annotations

import re
import string

from keras_filterprune.graph.types import Call, ModelView, TensorRef
from keras_filterprune.opening.placeholders import HeldWeight

# In the place of an equation: what a dense layer computes, over the last axis of tensors of any rank.
DENSE = "dense"


def products(view: ModelView) -> dict[int, str]:
    """{id of a weight: the equation by which all that read it multiply a tensor with it, the weight second}.

    Args:
        view: of a trace.
    """
    found: dict[int, str] = {}
    for number, call in enumerate(view.calls):
        ref = TensorRef(number, 0)
        readers = view.readers.get(ref, ())
        if isinstance(call.op, HeldWeight) and readers and len(view.calls) not in readers:
            equations = {_equation(view.calls[n], ref) for n in readers}
            if len(equations) == 1 and (equation := equations.pop()) is not None:
                found[id(call.op.variable)] = equation
    return found


def _equation(call: Call, weight: TensorRef) -> str | None:
    """How a call multiplies a tensor by a weight; None where it does something else."""
    name = type(call.op).__name__
    if name not in ("Matmul", "Einsum") or len(call.args) != 2 or sum(x == weight for x in call.args) != 1:
        return None
    second = call.args[1] == weight
    if not isinstance(call.args[not second], TensorRef):
        return None
    if name == "Matmul":
        return _of_matmul(*call.input_shapes) if second else None
    terms = re.split(",|->", call.op.subscripts.replace(" ", ""))
    if len(terms) != 3 or "." in call.op.subscripts or any(len(set(term)) < len(term) for term in terms):
        return None
    x, kernel, made = terms if second else (terms[1], terms[0], terms[2])
    return f"{x},{kernel}->{made}"


def _of_matmul(x: tuple, kernel: tuple) -> str | None:
    if len(kernel) == 2:
        return DENSE
    # Matrices side by side, each for its part of the tensor: none of them is repeated.
    if len(kernel) < 2 or len(x) < len(kernel) or x[len(x) - len(kernel) : -2] != kernel[:-2]:
        return None
    *batch, rows, summed, columns = tuple(string.ascii_letters[: len(x) + 1])
    before = "".join(batch[len(x) - len(kernel) :])
    every = "".join(batch)
    return f"{every}{rows}{summed},{before}{summed}{columns}->{every}{rows}{columns}"
