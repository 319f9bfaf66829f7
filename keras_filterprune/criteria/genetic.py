"""Genetic channel selection (Hu et al. 2018, "A novel channel pruning method for deep neural network compression")."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras_filterprune.checks import check_integer
from keras_filterprune.criteria.magnitude import L2
from keras_filterprune.criteria.reconstruction import Quadratic
from keras_filterprune.graph.types import Group
from keras_filterprune.probe.consumers import Moments

_CROSSOVER, _MUTATION = 0.9, 0.2
_ELITE, _STALE = 2, 20


class Genetic(Quadratic):
    """Searches, for every group and count, the channels whose loss changes the consumers' outputs least.

    Hu et al. 2018, "A novel channel pruning method for deep neural network compression"; the operators are ours.
    The squared error of the consumers' outputs, before bias and activation, is exactly m^T Q m for the removed channels
    m: Q_ab = sum Z_a Z_b / n with Z_a what channel a adds to the outputs. A generation costs one matrix product. Chosen
    from norms, energies, greedy elimination and chance, chromosomes of a fixed number of channels meet in tournaments,
    cross over uniformly, are repaired and swap one channel; the best two survive. Swaps that lower the error further
    follow until there is none. Scores are those of greedy elimination on the same error.

    Args:
        population: chromosomes in a generation, at least 4 (64).
        generations: at most so many (100); 20 without a better chromosome end the search.
        seed: of everything random (0).

    Raises:
        InvalidValueError: population, generations or seed is out of range.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.Genetic(population=32)
        Genetic(population=32, generations=100, seed=0)
    """

    def __init__(self, population: int = 64, generations: int = 100, seed: int = 0):
        super().__init__()
        self.population = check_integer("population", population, least=4)
        self.generations = check_integer("generations", generations, least=0)
        self.seed = check_integer("seed", seed, least=0)

    def gram(self, moments: Moments) -> np.ndarray:
        # The error itself, not what is left of it once a bias has taken up its mean.
        return moments.covariance + np.outer(moments.mean, moments.mean)

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        (q,) = self.found(group)
        return elimination_scores(q)

    def select(self, group: Group, n_keep: int, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        check_integer("n_keep", n_keep, f"how many of the {group.size} units stay", most=group.size)
        (q,) = self.found(group)
        rankings = [L2().scores(group, weights), np.diag(q), elimination_scores(q)]
        seeds = np.array([_lowest(scores, group.size - n_keep) for scores in rankings])
        generator = np.random.default_rng([self.seed, group.size, n_keep])
        removed = evolve(q, seeds, generator, self.population, self.generations)
        return np.flatnonzero(~swapped(q, removed))


def errors(q: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """m^T Q m of every row m of `removed`, boolean (..., n_units)."""
    m = removed.astype(np.float64)
    return ((m @ q) * m).sum(axis=-1)


def elimination_scores(q: np.ndarray) -> np.ndarray:
    """Rise of the error when units go one by one, each time the one that raises it least; the order is strict."""
    n = len(q)
    rise, scores, least = np.diag(q).copy(), np.empty(n), 0.0
    left = np.ones(n, bool)
    for _ in range(n):
        unit = int(np.argmin(np.where(left, rise, np.inf)))
        # Contributions can cancel, so that a later unit adds less; the order stays.
        scores[unit] = least = max(np.nextafter(least, np.inf), float(rise[unit]))
        left[unit] = False
        rise += 2 * q[unit]
    return scores


def evolve(
    q: np.ndarray, seeds: np.ndarray, generator: np.random.Generator, population: int, generations: int
) -> np.ndarray:
    """The best set of removed units that a genetic search finds, boolean (n_units,).

    Args:
        q: (n_units, n_units), see `error_matrix`.
        seeds: boolean (k, n_units), known sets; the others are Bernoulli samples. All have as many units as the first.
        generator: of everything random.
        population, generations: see `Genetic`.
    """
    n, gone = len(q), int(seeds[0].sum())
    if gone in (0, n):
        return seeds[0]
    drawn = generator.random((max(0, population - len(seeds)), n)) < gone / n
    sets = repaired(np.concatenate([seeds, drawn]), gone, generator)
    error = errors(q, sets)
    stale = 0
    for _ in range(generations):
        order = np.argsort(error, kind="stable")
        best, parents = error[order[0]], generator.integers(0, len(sets), (2, len(sets) - _ELITE, 2))
        mother, father = (np.take_along_axis(p, error[p].argmin(axis=1)[:, None], 1)[:, 0] for p in parents)
        mixed = generator.random((len(mother), n)) < 0.5
        mixed |= generator.random((len(mother), 1)) >= _CROSSOVER
        children = repaired(np.where(mixed, sets[mother], sets[father]), gone, generator)
        _swap(children, generator)
        sets = np.concatenate([sets[order[:_ELITE]], children])
        error = errors(q, sets)
        stale = 0 if error.min() < best else stale + 1
        if stale == _STALE:
            break
    return sets[error.argmin()]


def repaired(sets: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Sets (..., n) with members dropped or added at random until every one has `count` of them."""
    noise = generator.random(sets.shape)
    order = np.argsort(-(sets + noise), axis=-1)
    fixed = np.zeros(sets.shape, bool)
    np.put_along_axis(fixed, order[..., :count], True, axis=-1)
    return fixed


def _swap(sets: np.ndarray, generator: np.random.Generator) -> None:
    """Mutation in place: in some sets, a member and a unit outside change places."""
    noise = generator.random(sets.shape)
    member, other = (sets + noise).argmax(axis=1), (sets - noise).argmin(axis=1)
    rows = np.flatnonzero(generator.random(len(sets)) < _MUTATION)
    sets[rows, member[rows]], sets[rows, other[rows]] = False, True


def swapped(q: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """A set after the swaps, best first, that lower its error; no single swap lowers it further."""
    removed = removed.copy()
    own = np.diag(q)
    while True:
        inside, outside = np.flatnonzero(removed), np.flatnonzero(~removed)
        slope = 2 * q[:, removed].sum(axis=1)
        back = own[inside] - slope[inside]
        change = back[:, None] + (own[outside] + slope[outside])[None] - 2 * q[np.ix_(inside, outside)]
        # What rounding gains and loses again would go on for ever.
        if not change.size or change.min() >= -1e-12 * max(own.max(), 1e-300):
            return removed
        i, o = np.unravel_index(change.argmin(), change.shape)
        removed[inside[i]], removed[outside[o]] = False, True


def _lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """Boolean (n,): the `count` units of lowest score."""
    lowest = np.zeros(len(scores), bool)
    lowest[np.argsort(scores, kind="stable")[:count]] = True
    return lowest
