"""Which layers a model can do without: residual blocks, same-shape convolutions, branches next to a projection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import keras

from keras_filterprune.graph.types import ChannelGraph, ModelView, TensorRef
from keras_filterprune.handlers.activation import is_activation, is_relu
from keras_filterprune.handlers.registry import keras_name, statistics_of

L = keras.layers
# Layers and operations; the second is of InceptionResNetV2 in keras.applications: x + scale * branch.
_SUMS = ("Add", "CustomScaleLayer")


@dataclass(frozen=True, eq=False)
class Unit:
    """Layers that go together; the tensor that enters takes the place of the one that leaves.

    Attributes:
        name: of the sum that ends a block or branch, or of the convolution.
        kind: "block" (its shortcut is an identity), "branch" (next to a projection) or "convolution".
        layers: paths of all operations that go, in the order of the model.
        calls: their call numbers.
        source: the tensor that takes over.
        target: the tensor it stands in for.
        passes: {call number: which of the call's inputs takes the place of its output}, from `source` to `target`.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    calls: frozenset[int]
    source: TensorRef
    target: TensorRef
    passes: dict[int, int]

    def joins(self, view: ModelView) -> tuple[int, int] | None:
        """The call that adds a unit to its shortcut, and which of its inputs the unit is; None if there is none."""
        sums = [(number, 1 - kept) for number, kept in self.passes.items() if len(view.calls[number].inputs) == 2]
        return sums[0] if sums else None


def find_units(graph: ChannelGraph, projections: bool = False) -> tuple[list[Unit], dict[str, str]]:
    """Find everything that can be removed without changing a shape, innermost units alone.

    Args:
        graph: the channel graph of a model.
        projections: also offer main branches next to a projection shortcut, which then stays alone (False).

    Returns:
        Units in the order of the model, and {layer: why it is in none} for every layer that multiplies.
    """
    finder = _Finder(graph)
    blocks, reasons = finder.blocks(projections)
    plain = [unit for number in range(len(graph.view.calls)) if (unit := finder.plain(number)) is not None]
    units = sorted([*_innermost(blocks, reasons), *plain], key=lambda unit: unit.target.call)
    offered = {layer for unit in units for layer in unit.layers}
    left = {layer: reasons.get(layer) or finder.why(layer) for layer in finder.weighted if layer not in offered}
    return units, left


def _innermost(units: list[Unit], reasons: dict[str, str]) -> list[Unit]:
    """Units without those that hold others."""
    kept = []
    for unit in units:
        inner = [other.name for other in units if other is not unit and other.calls < unit.calls]
        if inner:
            reasons.update(dict.fromkeys(unit.layers, f"is in '{unit.name}', which holds {_listed(inner)}"))
        else:
            kept.append(unit)
    return kept


class _Finder:
    """Walks one model.

    Attributes:
        weighted: paths of the layers that multiply.
    """

    def __init__(self, graph: ChannelGraph):
        self._view = graph.view
        self._counted = {term.layer: None for term in graph.terms}
        self.weighted = [*self._counted, *graph.uncounted]
        self._times = Counter(call.path for call in self._view.calls)

    def blocks(self, projections: bool) -> tuple[list[Unit], dict[str, str]]:
        """Blocks and branches that end in a sum, and {layer: why its block is none}."""
        units, reasons = [], {}
        for number, call in enumerate(self._view.calls):
            if keras_name(call.op) not in _SUMS or len(call.inputs) != 2:
                continue
            branches = [self._exclusive(number, index) for index in (0, 1)]
            kept, kind = self._shortcut(number, branches)
            why = self._refusal(number, branches, kept, kind, projections)
            if why is None:
                units.append(self._block(number, branches[1 - kept], kept, kind))
            else:
                reasons.update(dict.fromkeys(self._paths(branches[0] | branches[1]), why))
        return units, reasons

    def _exclusive(self, number: int, index: int) -> set[int]:
        """Calls that work for input `index` of call `number` and for nothing else."""
        start, other = (self._view.calls[number].inputs[i] for i in (index, 1 - index))
        region: set[int] = set()
        wanted = {start.call} if start != other else set()
        for candidate in range(number - 1, -1, -1):
            call = self._view.calls[candidate]
            if candidate not in wanted or not call.inputs or other.call == candidate:
                continue
            outputs = [TensorRef(candidate, i) for i in range(len(call.output_shapes))]
            readers = {reader for ref in outputs for reader in self._view.readers.get(ref, ())}
            if readers <= region | {number}:
                region.add(candidate)
                wanted.update(ref.call for ref in call.inputs)
        return region

    def _entries(self, region: set[int]) -> set[TensorRef]:
        """Tensors that a region reads and does not make."""
        return {ref for number in region for ref in self._view.calls[number].inputs if ref.call not in region}

    def _shortcut(self, number: int, branches: list[set[int]]) -> tuple[int, str]:
        """Which input of a sum is its shortcut, and what the other one then is."""
        inputs = self._view.calls[number].inputs
        for kept in (0, 1):
            if branches[1 - kept] and self._entries(branches[1 - kept]) == {inputs[kept]}:
                return kept, "block"
        sizes = [len(self._weighted_in(branch)) for branch in branches]
        return int(sizes[1] < sizes[0]), "branch"

    def _refusal(self, number: int, branches: list[set[int]], kept: int, kind: str, projections: bool) -> str | None:
        call, removed = self._view.calls[number], branches[1 - kept]
        if not self._weighted_in(removed):
            return f"is in a branch of '{call.path}' that holds nothing to remove"
        again = [path for path in self._paths(removed | {number}) if self._times[path] > 1]
        if again:
            return f"ends in '{call.path}', but '{again[0]}' is called elsewhere, too"
        if self._is_output(number):
            return f"ends in '{call.path}', an output of the model"
        if call.input_shapes[kept] != call.output_shapes[0]:
            return f"ends in '{call.path}', whose shortcut is broadcast"
        if kind == "block":
            return None
        if keras_name(call.op) != "Add":
            return f"ends in '{call.path}', which scales its inputs"
        same = self._entries(branches[0]) == self._entries(branches[1]) and len(self._entries(branches[0])) == 1
        if not same or not len(self._weighted_in(branches[kept])) == 1 < len(self._weighted_in(removed)):
            return f"ends in '{call.path}', which has neither an identity nor a projection as its shortcut"
        if not projections:
            return f"ends in '{call.path}' next to a projection; projections=True offers the branch"
        return None

    def _block(self, number: int, region: set[int], kept: int, kind: str) -> Unit:
        call, passes, end = self._view.calls[number], {number: kept}, number
        source, after = call.inputs[kept], self._view.only_reader(number)
        if kind == "block" and after is not None:
            around = self._view.calls[source.call], self._view.calls[after]
            if all(is_relu(c.op) and self._times[c.path] == 1 for c in around):
                # What has been through a ReLU gains nothing from another one.
                passes[after], end = 0, after
        return self._unit(call.path, kind, region | set(passes), source, end, passes)

    def plain(self, number: int) -> Unit | None:
        """The convolution at a call, with the normalization and activation behind it, if it keeps the shape.

        Only where the network is a single tensor wide: a layer of equal shape in a gate is there for its gate.
        """
        call = self._view.calls[number]
        if call.path not in self._counted or not self._keeps_shape(number) or self._crossed(number):
            return None
        passes, end = {number: 0}, number
        after = self._view.only_reader(end)
        while after is not None and self._belongs(after, passes):
            passes[after], end = 0, after
            after = self._view.only_reader(end)
        return self._unit(call.path, "convolution", set(passes), call.inputs[0], end, passes)

    def _keeps_shape(self, number: int) -> bool:
        call = self._view.calls[number]
        return (
            len(call.inputs) == 1
            and self._times[call.path] == 1
            and call.input_shapes[0] == call.output_shapes[0]
            and bool(self._view.calls[call.inputs[0].call].inputs)
            and not self._is_output(number)
        )

    def _crossed(self, number: int) -> bool:
        """Whether a tensor is made before a call and read behind it."""
        return any(ref.call < number < max(readers) for ref, readers in self._view.readers.items())

    def _belongs(self, number: int, passes: dict[int, int]) -> bool:
        """Whether a call is the normalization or the activation of the convolution before it."""
        call, before = self._view.calls[number], [self._view.calls[n].op for n in passes]
        if not self._keeps_shape(number) or call.path in self.weighted or any(map(is_activation, before)):
            return False
        normalizes = statistics_of(call.op) is not None and not any(map(statistics_of, before))
        return normalizes or is_activation(call.op)

    def why(self, layer: str) -> str:
        """Why a layer that multiplies is in no unit."""
        numbers = [number for number, call in enumerate(self._view.calls) if call.path == layer]
        call = self._view.calls[numbers[0]]
        if len(numbers) > 1:
            return "is called several times"
        if len(call.inputs) != 1 or call.input_shapes[0] != call.output_shapes[0]:
            shapes = [tuple(shape[1:]) for shape in (*call.input_shapes, call.output_shapes[0])]
            return f"changes the shape: {' and '.join(map(str, shapes[:-1]))} to {shapes[-1]}"
        if self._is_output(numbers[0]):
            return "gives an output of the model"
        return "is one of several branches" if self._crossed(numbers[0]) else "reads an input of the model"

    def _is_output(self, number: int) -> bool:
        return TensorRef(number, 0) in self._view.outputs

    def _unit(
        self, name: str, kind: str, calls: Iterable[int], source: TensorRef, end: int, passes: dict[int, int]
    ) -> Unit:
        calls = frozenset(calls)
        return Unit(name, kind, tuple(self._paths(calls)), calls, source, TensorRef(end, 0), passes)

    def _paths(self, numbers: Iterable[int]) -> list[str]:
        return list(dict.fromkeys(self._view.calls[number].path for number in sorted(numbers)))

    def _weighted_in(self, region: set[int]) -> list[str]:
        return [path for path in self._paths(region) if path in self.weighted]


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
