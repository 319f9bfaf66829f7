"""Products of tensors, of which attention written by hand is made: axes that they share carry whole heads."""

from __future__ import annotations

import abc
import re
from collections.abc import Hashable, Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor, TensorRef
from keras_filterprune.handlers.base import Handler, Resize, describe, give_up, untracked, volume
from keras_filterprune.handlers.registry import register_keras_names

Labels = Sequence[Hashable]


class Product(Handler):
    """Sums the products of operands over the labels that the output lacks.

    Channels along a label of the output go on, those of all operands that have the label tied: heads, most often.
    Channels along a label that is summed over are tied as well, and end here. Where operands share an axis besides that
    of the batch, a reshape before is asked to lay channels along it.
    """

    @abc.abstractmethod
    def labels(self, call: Call) -> tuple[list[Labels], Labels] | None:
        """A label for every axis of the operands, which are `call.args`, and of the output; None where unknown."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        found = self.labels(call)
        if found is None:
            return give_up(call, inputs, t, "feeds")
        (terms, out), operands = found, _operands(call, inputs)
        sizes = _sizes(operands, terms)
        self._spend(call, operands, terms, sizes, t)
        shared = [label for label in out[1:] if sizes[label] != 1 and sum(label in term for term in terms) > 1]
        carried = _carried(operands, terms)
        for label, tensors in carried.items():
            if shared and label not in shared:
                for x in tensors:
                    t.reconsider(x.ids)
        # Only one axis of the output can carry channels: the one that most operands have.
        lasting = sorted((n for n in carried if n in out), key=lambda n: (n in shared, len(carried[n])))
        for label, tensors in carried.items():
            self._join(call, label, tensors, operands, terms, t)
            if label in lasting[:-1]:
                t.pin_tensors(tensors, f"meets channels of another axis in {describe(call)}")
        shape = call.output_shapes[0]
        return [Tensor(shape, out.index(lasting[-1]), carried[lasting[-1]][0].ids) if lasting else Tensor(shape)]

    def _join(
        self, call: Call, label: Hashable, tensors: list[Tensor], operands: list[Any], terms: list[Labels], t: Tracer
    ) -> None:
        """Tie the channels along a label, which all operands that have it have to carry."""
        width = max(len(x.ids) for x in tensors)
        others = [
            x
            for x, term in zip(operands, terms, strict=True)
            if isinstance(x, Tensor) and label in term and x not in tensors and x.shape[term.index(label)] != 1
        ]
        if others or any(len(x.ids) != width for x in tensors):
            t.pin_tensors(tensors, f"meets channels that are not tracked in {describe(call)}")
        else:
            t.tie(*(x.ids for x in tensors))

    def _spend(self, call: Call, operands: list[Any], terms: list[Labels], sizes: dict, t: Tracer) -> None:
        """A multiplication for every combination of positions, those along channels by their ids."""
        along = {label: xs[0].ids for label, xs in _carried(operands, terms).items() if len(xs[0].ids) == sizes[label]}
        rest = volume(tuple(size for label, size in sizes.items() if label not in along))
        t.spend(call.path, rest, *along.values())

    def rewrite(self, args: tuple, kwargs: dict, r: Resize) -> tuple[tuple, dict]:
        """Constant operands lose what meets removed channels."""
        return self._cut(args, r, lambda x, _: not isinstance(x, TensorRef | keras.KerasTensor)), kwargs

    def masked_call(self, op: Any, args: tuple, kwargs: dict, r: Resize) -> Any:
        """Removed channels are left out of the sums."""
        _, out = self.labels(r.call) or ((), ())
        return op(*self._cut(args, r, lambda _, label: label not in out), **kwargs)

    def _cut(self, args: tuple, r: Resize, where: Any) -> tuple:
        found = self.labels(r.call)
        if found is None:
            return args
        terms, operands = found[0], _operands(r.call, r.inputs)
        stays = {label: r.kept(xs[0]) for label, xs in _carried(operands, terms).items()}
        cut = []
        for x, term in zip(args, terms, strict=True):
            for axis, label in enumerate(term):
                kept = stays.get(label, np.ones(0, bool))
                if not kept.all() and where(x, label) and np.shape(x)[axis] == len(kept):
                    x = keras.ops.take(x, np.flatnonzero(kept), axis=axis)
            cut.append(x)
        return tuple(cut)


@register_keras_names("Matmul")
class Matmul(Product):
    """Rows by columns, of as many matrices as the axes before say."""

    def labels(self, call: Call) -> tuple[list[Labels], Labels] | None:
        first, second = (len(x.shape) for x in _operands(call, _placed(call)))
        batch = list(range(max(first, second, 2) - 2))
        left = [*batch[max(0, len(batch) + 2 - first) :], "row", "sum"][-first:]
        right = [*batch[max(0, len(batch) + 2 - second) :], "sum", "column"] if second > 1 else ["sum"]
        rows = [label for label in ("row", "column") if label in left or label in right]
        return [left, right], [*batch, *rows]


@register_keras_names("Einsum")
class Einsum(Product):
    """Labels are the letters of the equation."""

    def labels(self, call: Call) -> tuple[list[Labels], Labels] | None:
        *given, made = re.split(",|->", call.op.subscripts.replace(" ", ""))
        if "->" not in call.op.subscripts or len(given) < 2 or len(given) != len(call.args):
            return None
        ranks = [len(x.shape) for x in _operands(call, _placed(call))]
        terms = [_spelled(term, rank) for term, rank in zip(given, ranks, strict=True)]
        if any(len(set(term)) < len(term) for term in terms):
            return None
        return terms, _spelled(made, len(call.output_shapes[0]))


@register_keras_names("DotProductAttention")
class DotProductAttention(Handler):
    """Queries, keys and values of shape (batch, positions, heads, numbers); heads of queries may share one of keys."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        made = dict(zip(call.inputs, inputs, strict=True))
        given = dict(zip(("query", "key", "value", "bias", "mask", "scale"), call.args, strict=False)) | call.kwargs
        found = {n: made[x] if isinstance(x, TensorRef) else Tensor(np.shape(x)) for n, x in given.items()}
        query, key, value = (found[name] for name in ("query", "key", "value"))
        others = [x for x in (query, key, value) if x.axis != 2]
        if others:
            for x in others:
                t.reconsider(x.ids)
            t.pin_tensors(inputs, f"lies on another axis than that of the heads of {describe(call)}")
            return untracked(call)
        heads = len(query.ids)
        t.tie(query.ids, *(np.repeat(x.ids, heads // len(x.ids)) for x in (key, value)))
        if len(key.ids) < heads and keras.config.backend() == "tensorflow":
            # One of the others stays as well, whatever is removed.
            t.pin(key.ids[:1], f"is shared in {describe(call)}, where Keras shares two heads or more on TensorFlow")
        t.spend(call.path, 2 * volume((query.shape[1], key.shape[1], query.last)), query.ids)
        for x in (found[name] for name in ("bias", "mask") if name in found):
            if x.axis == 1 and len(x.ids) == heads:
                t.tie(query.ids, x.ids)
            else:
                t.pin_tensors([x], f"masks {describe(call)}")
                if len(x.shape) > 1 and x.shape[1] != 1:
                    t.pin(query.ids, f"is masked on its own in {describe(call)}")
        return [Tensor(call.output_shapes[0], 2, query.ids)]


@register_keras_names("Take")
class Take(Handler):
    """`ops.take(x, indices, axis)`: rows of a table keep their channels; along the channels, numbers pick their ids."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, indices = (*_operands(call, inputs), *call.kwargs.values())[:2]
        shape, axis = call.output_shapes[0], call.op.axis
        if not isinstance(x, Tensor) or x.axis is None:
            return [Tensor(shape)]
        if axis is None or axis % len(x.shape) == x.axis:
            return give_up(call, inputs, t, "is picked by number in")
        moved = len(np.shape(indices)) - 1 if axis % len(x.shape) < x.axis else 0
        return [Tensor(shape, x.axis + moved, x.ids)]


@register_keras_names("TakeAlongAxis")
class TakeAlongAxis(Handler):
    """`ops.take_along_axis(x, indices, axis)`: channels along another axis stay, constant indices go with them."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        (x, indices), shape = _operands(call, inputs)[:2], call.output_shapes[0]
        if not isinstance(x, Tensor) or x.axis is None or call.op.axis is None:
            return give_up(call, inputs, t, "is picked by number in")
        axis = x.axis
        apart = axis != call.op.axis % len(x.shape) and shape[axis] == len(x.ids)
        if isinstance(indices, Tensor):
            apart = apart and (indices.axis == axis or indices.shape[axis] == 1)
        if not apart:
            return give_up(call, inputs, t, "is picked by number in")
        if isinstance(indices, Tensor) and indices.axis == axis and indices.shape[axis] != 1:
            t.tie(x.ids, indices.ids)
        return [Tensor(shape, axis, x.ids)]

    def rewrite(self, args: tuple, kwargs: dict, r: Resize) -> tuple[tuple, dict]:
        out, (x, indices, *others) = r.outputs[0], args
        if out.axis is None or isinstance(indices, TensorRef | keras.KerasTensor):
            return args, kwargs
        if np.shape(indices)[out.axis] != 1:
            indices = keras.ops.take(indices, np.flatnonzero(r.kept(out)), axis=out.axis)
        return (x, indices, *others), kwargs


def _operands(call: Call, inputs: Sequence[Any]) -> list[Any]:
    """The arguments of a call, with the tensors in the place of references."""
    made = dict(zip(call.inputs, inputs, strict=True))
    return [made[x] if isinstance(x, TensorRef) else np.asarray(x) for x in call.args]


def _placed(call: Call) -> list[Tensor]:
    return [Tensor(shape) for shape in call.input_shapes]


def _carried(operands: list[Any], terms: list[Labels]) -> dict[Hashable, list[Tensor]]:
    """{label: the operands whose channels lie along it}."""
    found: dict[Hashable, list[Tensor]] = {}
    for x, term in zip(operands, terms, strict=True):
        if isinstance(x, Tensor) and x.axis is not None:
            found.setdefault(term[x.axis], []).append(x)
    return found


def _sizes(operands: list[Any], terms: list[Labels]) -> dict[Hashable, int | None]:
    """{label: its size}; a side of one is broadcast."""
    sizes: dict[Hashable, int | None] = {}
    for x, term in zip(operands, terms, strict=True):
        sizes.update({n: s for n, s in zip(term, x.shape, strict=True) if sizes.get(n, 1) == 1})
    return sizes


def _spelled(term: str, rank: int) -> Labels:
    """The letters of a term, numbers for the axes of an ellipsis, which are counted from the last."""
    before, dots, after = term.partition("...")
    return [*before, *range(len(before) + len(after) - rank, 0), *after] if dots else [*term]
