"""Small networks that read the weights of filters and say what becomes of their gates."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import check_integer, check_returned
from keras_filterprune.criteria import read_filters
from keras_filterprune.graph.types import ChannelGraph, Group, Member
from keras_filterprune.parts import Part, returns
from keras_filterprune.probe.gradients import gradients

# {(layer, weight): array} of the network that is gated.
_Weights = Mapping[tuple[str, str], np.ndarray]


def _check_features(scorer: Any, found: Any, graph: ChannelGraph, group: Group, *_: Any) -> None:
    """What is read of filters are rows of numbers, one per unit."""
    right = isinstance(found, np.ndarray) and found.ndim == 2 and len(found) == group.size and found.dtype.kind in "iuf"
    expected = f"return an array of {group.size} rows of numbers, what is read of the filters of '{group.name}'"
    check_returned(right and bool(np.isfinite(found).all()), f"{scorer!r}.features", expected, found)


def _check_first(scorer: Any, found: Any, *_: Any) -> None:
    """The first weights are arrays by their names."""
    right = isinstance(found, dict) and bool(found) and all(isinstance(value, np.ndarray) for value in found.values())
    check_returned(right, f"{scorer!r}.begin", "return a dict of arrays, the first weights", found)


def _check_scored(scorer: Any, found: Any, weights: dict[str, Any], features: Any) -> None:
    """Scores are a tensor of shape (n,)."""
    shape = tuple(getattr(found, "shape", ()))
    expected = f"return one number per filter, a tensor of shape ({len(features)},)"
    check_returned(shape == (len(features),), f"{scorer!r}.score", expected, shape)


class GateScorer(Part):
    """A small network in whose weights gates are trained.

    A gate is what it starts at, plus the score f(w) of its filter's weights w, as they are when training begins. Steps
    that gates would take on their own (the optimizer's, and the hinge's) go back through the network by the chain rule,
    and its weights take a step of this direction: the one by which gates come nearest to where they would go. So
    filters alike have gates alike.

    A subclass says what is read of the filters of a group, with which weights the network begins, and what it computes,
    in `keras.ops`. Settings of its own are attributes, set in its `__init__`.

    Args:
        seed: of the first weights (0).

    Attributes:
        shared: one network for all groups (False: one for each, which begins anew in every `fit`).
        weights: what the networks have learned, a dict of arrays for each.

    Raises:
        InvalidValueError: seed is not an integer from 0 on.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> class BySize(kfp.callbacks.GateScorer):
        ...     def features(self, graph, group, weights, target):
        ...         kernels = [m for m in group.members if m.role == "filter"]
        ...         sizes = [np.abs(kfp.criteria.read_filters(m, weights)).mean(axis=1) for m in kernels]
        ...         return np.stack(sizes, axis=1)
        ...
        ...     def begin(self, width, generator):
        ...         return {"slope": np.zeros(width, "float32"), "offset": np.zeros((), "float32")}
        ...
        ...     def score(self, weights, features):
        ...         return keras.ops.matmul(features, weights["slope"]) + weights["offset"]
        ...
        >>> kfp.callbacks.BudgetGates(0.5, scorer=BySize()).scorer
        BySize(seed=0)
    """

    shared = False
    # For subclasses that have an `__init__` of their own.
    seed = 0
    weights: Sequence[dict[str, np.ndarray]] = ()

    def __init__(self, seed: int = 0):
        self.seed = check_integer("seed", seed, least=0)

    def __repr__(self) -> str:
        settings = (f"{name}={value!r}" for name, value in vars(self).items() if name[0] != "_" and name != "weights")
        return f"{type(self).__name__}({', '.join(settings)})"

    @returns(_check_features)
    @abc.abstractmethod
    def features(self, graph: ChannelGraph, group: Group, weights: _Weights, target: float) -> np.ndarray:
        """What the network reads of the filters of a group.

        Args:
            graph: of the gated network.
            group: one of its groups.
            weights: {(layer, weight): array}, all weights of the gated network, to read.
            target: the budget, as a fraction of what the whole network costs.

        Returns:
            Numbers of shape (n_units, features), as many features for every group if the network is `shared`.
        """

    @returns(_check_first)
    @abc.abstractmethod
    def begin(self, width: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """The first weights of a network; those by which its scores are zero leave gates where they start.

        Args:
            width: features that it reads.
            generator: draws them, by the seed.

        Returns:
            A dict of float32 arrays by names of your own.
        """

    @returns(_check_scored)
    @abc.abstractmethod
    def score(self, weights: dict[str, Any], features: Any) -> Any:
        """Scores of filters, differentiable in the weights.

        Args:
            weights: of the network, as `begin` names them, tensors.
            features: of n filters, a tensor of shape (n, features).

        Returns:
            A tensor of shape (n,).
        """

    def look(self, graph: ChannelGraph, weights: _Weights, target: float) -> np.ndarray:
        """Read the filters of a network; the scores of all, group by group."""
        read = [self.features(graph, group, weights, target).astype("float32") for group in graph.groups]
        widths = sorted({features.shape[1] for features in read})
        expected = "return as many features for every group, which one network reads"
        check_returned(len(widths) < 2 or not self.shared, f"{self!r}.features", expected, widths)
        self._read = [np.concatenate(read)] if self.shared else read
        if not (self.shared and self.weights):
            generator = np.random.default_rng(self.seed)
            self.weights = [self.begin(features.shape[1], generator) for features in self._read]
        return np.concatenate([self._scores(w, x) for w, x in zip(self.weights, self._read, strict=True)])

    def follow(self, steps: np.ndarray) -> np.ndarray:
        """Train the networks on a step of all gates, group by group; by how much scores moved."""
        parts = np.split(steps, np.cumsum([len(features) for features in self._read])[:-1])
        return np.concatenate([self._train(n, part) for n, part in enumerate(parts)])

    def _train(self, number: int, step: np.ndarray) -> np.ndarray:
        weights, features = self.weights[number], self._read[number]

        def along(at: dict[str, Any]) -> Any:
            return keras.ops.sum(keras.ops.multiply(self.score(at, features), step.astype("float32")))

        found = gradients(along, _tensors(weights))
        back = {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}
        before, length = self._scores(weights, features), np.sqrt(sum(np.square(b).sum() for b in back.values()))
        if length == 0:
            return np.zeros(len(step))

        def after(factor: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
            new = {name: (value + factor * back[name]).astype("float32") for name, value in weights.items()}
            return new, self._scores(new, features) - before

        # Where scores go is known when they have gone.
        factor = np.linalg.norm(step) / length
        tried = after(factor)[1]
        new, moved = after(factor * max(0.0, tried @ step) / max(tried @ tried, 1e-30))
        self.weights = [*self.weights[:number], new, *self.weights[number + 1 :]]
        return moved

    def _scores(self, weights: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
        return keras.ops.convert_to_numpy(self.score(_tensors(weights), features)).astype(float)


class _Hidden(GateScorer):
    """A scorer with something inside that is `hidden` numbers wide (16)."""

    def __init__(self, hidden: int = 16, seed: int = 0):
        self.hidden = check_integer("hidden", hidden)
        super().__init__(seed)


class _TwoLayers(_Hidden):
    """f(x) = b relu(A x + a) + c."""

    def begin(self, width: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        first = generator.normal(0, width**-0.5, (width, self.hidden))
        shapes = {"offset": (self.hidden,), "last": (self.hidden,), "bias": ()}
        return {"first": first.astype("float32")} | {name: np.zeros(s, "float32") for name, s in shapes.items()}

    def score(self, weights: dict[str, Any], features: Any) -> Any:
        inside = keras.ops.relu(keras.ops.matmul(features, weights["first"]) + weights["offset"])
        return keras.ops.matmul(inside, weights["last"]) + weights["bias"]


class DenseScorer(_TwoLayers):
    """Two dense layers on the mean size of a filter's weights, input by input (after Dagger, Su et al. 2020).

    f(w) = b relu(A v + a) + c, where v is the mean of |w| over the filter's window, one number per input, and A, a, b,
    c are trained for every group. "Data Agnostic Filter Gating for Efficient Deep Networks": gates come from pretrained
    weights through an auxiliary network, and MACs are regularized. Of this library are how v is pooled, that scores are
    added to where gates start, the hinge of `BudgetGates`, and that gates are hard in the end, not sorted and cut.

    Args:
        hidden: units of the hidden layer (16).
        seed: of the first weights (0).

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.callbacks.BudgetGates(0.5, scorer=kfp.callbacks.DenseScorer()).scorer
        DenseScorer(hidden=16, seed=0)
    """

    def features(self, graph: ChannelGraph, group: Group, weights: _Weights, target: float) -> np.ndarray:
        return _side_by_side(group, [_pooled(member, weights) for member in _makers(group)])


class AttentionScorer(_Hidden):
    """Attention of the filters of a group to each other (after SbF-Pruner, Babaiee et al. 2022).

    f(w_j) = sum_i softmax_j(q_i k_j / sqrt(d)) - 1 + c, where q_i = w_i Q and k_j = w_j K: how much all filters attend
    to filter j, which is 1 on average. Q, K and c are trained for every group. "End-to-End Sensitivity-Based Filter
    Pruning" trains from scratch and lowers the mean score; here weights are those at the beginning of training, the
    hinge of `BudgetGates` lowers gates, and the form of the attention is of this library.

    Args:
        hidden: d, numbers in a query and in a key (16).
        seed: of the first weights (0).

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.callbacks.BudgetGates(0.5, scorer=kfp.callbacks.AttentionScorer(hidden=8)).scorer
        AttentionScorer(hidden=8, seed=0)
    """

    def features(self, graph: ChannelGraph, group: Group, weights: _Weights, target: float) -> np.ndarray:
        return _side_by_side(group, [read_filters(member, weights) for member in _makers(group)])

    def begin(self, width: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        query = generator.normal(0, width**-0.5, (width, self.hidden)).astype("float32")
        return {"query": query, "key": np.zeros_like(query), "bias": np.zeros((), "float32")}

    def score(self, weights: dict[str, Any], features: Any) -> Any:
        query, key = (keras.ops.matmul(features, weights[name]) for name in ("query", "key"))
        attention = keras.ops.softmax(keras.ops.matmul(query, keras.ops.transpose(key)) / self.hidden**0.5, axis=-1)
        return keras.ops.sum(attention, axis=0) - 1 + weights["bias"]


class PrunerNetwork(_TwoLayers):
    """One network for all filters and for any budget (after the network pruning network, Verma et al. 2020).

    f(x) = b relu(A x + a) + c of five numbers: how large are the weights that make a channel, and those that read it,
    as logarithms in units of the group's deviation, from its mean; where in the network the group is, from 0 to 1; its
    width, log2(n) / 10; and the budget. What it has learned stays in `weights`: handed to another training, of another
    budget or of another network, gates start at what it says of them. "A Network Pruning Network Approach to Deep Model
    Compression" trains a twin of the network, with one binary output per filter, on images; this one sees no images.

    Args:
        hidden: units of the hidden layer (16).
        seed: of the first weights (0).

    Example:
        >>> import keras_filterprune as kfp
        >>> pruner = kfp.callbacks.PrunerNetwork()
        >>> [kfp.callbacks.BudgetGates(keep, scorer=pruner).scorer is pruner for keep in (0.7, 0.5, 0.35)]
        [True, True, True]
    """

    shared = True

    def features(self, graph: ChannelGraph, group: Group, weights: _Weights, target: float) -> np.ndarray:
        place = graph.groups.index(group) / max(1, len(graph.groups) - 1)
        same = np.array([place, np.log2(group.size) / 10, target])
        sizes = [_size(group, role, weights) for role in ("filter", "input")]
        return np.column_stack([*sizes, np.tile(same, (group.size, 1))])


def _tensors(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: keras.ops.convert_to_tensor(value) for name, value in weights.items()}


def _makers(group: Group) -> list[Member]:
    return [member for member in group.members if member.role == "filter"]


def _pooled(member: Member, weights: _Weights) -> np.ndarray:
    """Mean |w| of filters over all but their inputs, which kernels have last but for the filters."""
    shape = weights[member.layer, member.weight].shape
    inputs = np.delete(shape, member.axis)[-1]
    return np.abs(read_filters(member, weights)).reshape(len(member.positions), -1, inputs).mean(axis=1)


def _side_by_side(group: Group, parts: list[np.ndarray]) -> np.ndarray:
    """What layers have of the filters of a group, each in units of its root mean square."""
    scaled = [part / max(np.sqrt(np.square(part).mean()), 1e-12) for part in parts]
    return np.hstack(scaled or [np.zeros((group.size, 1))])


def _size(group: Group, role: str, weights: _Weights) -> np.ndarray:
    """Logarithm of the size of what makes or reads channels, standardised in the group."""
    norms = [np.linalg.norm(read_filters(m, weights), axis=1) for m in group.members if m.role == role]
    logs = np.log(1e-3 + np.mean([n / max(n.mean(), 1e-12) for n in norms] or [np.ones(group.size)], axis=0))
    return (logs - logs.mean()) / max(logs.std(), 1e-3)
