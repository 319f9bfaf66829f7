"""Widths by evolution: many width vectors, tried on the masked network (Shibu et al. 2023, without a hypernetwork)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_filterprune.allocators.base import Allocation, Allocator, last_feasible, top_up
from keras_filterprune.checks import check_integer, check_option
from keras_filterprune.errors import InvalidValueError
from keras_filterprune.probe.metrics import check_metric, metric_name
from keras_filterprune.probe.workers import check_executor
from keras_filterprune.progress import track

_FITNESS = ("score", "reward")
# Of a generation: the parents, and the children by mutation and by crossover; the rest is drawn anew.
_PARENTS, _MUTANTS, _CROSSED = 0.2, 0.5, 0.3
_MUTATION = 0.1
_RESOLUTION = 2**12


class Evolution(Allocator):
    """Search over width vectors under the budget; every candidate is tried, its consumers refitted, none is rebuilt.

    With `fitness="reward"`, rewarded meta-pruning (Shibu et al. 2023) at its 50 candidates and 20 generations, without
    the network that generates the weights of candidates there: these are slices of the network's own, which the
    method's compensator refits. Which of the two tells widths better was not measured.

    A candidate is a fraction per group, scaled until it spends the budget. The first generation is the uniform one and
    random ones; then the best fifth are parents, half of a generation are their mutants (every tenth gene drawn anew),
    three tenths their uniform crossovers, and the others are random.

    Args:
        population: candidates of a generation, at least 10 (50).
        generations: after the first (20).
        fitness: "score" (default), what `measure` says; or "reward", (a0 / (a0 - a))^2 ln(F0 / F) of the accuracies a0
            and a and the costs F0 and F of the whole network and the candidate, which may then cost less than the
            budget. a0 - a counts as 0.1 points at least.
        measure: what is to stay high, a metric as in `measure_sensitivity` ("auto": accuracy of classes, else minus the
            compiled loss). `data` is labelled, and not the test split; for "error" it has no labels.
        executor: a `concurrent.futures` executor, or one with the same `submit`, that tries candidates side by side
            (None). A process pool has to start its processes by "spawn".
        seed: of everything random (0).

    Raises:
        InvalidValueError: population, generations or seed is out of range, or the reward is to be of errors.
        UnknownNameError: fitness or measure is not known.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.L2(), kfp.allocators.Evolution(population=20, generations=5)).allocator
        Evolution(population=20, generations=5, fitness='score', measure='auto', seed=0)
    """

    def __init__(
        self,
        population: int = 50,
        generations: int = 20,
        fitness: str = "score",
        measure: Any = "auto",
        executor: Any = None,
        seed: int = 0,
    ):
        self.population = check_integer("population", population, least=10)
        self.generations = check_integer("generations", generations, least=0)
        self.seed = check_integer("seed", seed, least=0)
        self.fitness, self.measure = check_option("fitness", fitness, _FITNESS), check_metric("measure", measure)
        self.executor = check_executor(executor)
        if fitness == "reward" and self.measure == "auto":
            self.measure = "accuracy"
        if fitness == "reward" and self.measure != "accuracy":
            raise InvalidValueError(
                f"fitness='reward' goes with measure='accuracy', whose points it counts. Received: measure={measure!r}."
            )

    def __repr__(self) -> str:
        return (
            f"Evolution(population={self.population}, generations={self.generations}, fitness={self.fitness!r}, "
            f"measure={metric_name(self.measure)!r}, seed={self.seed})"
        )

    def allocate(self, problem: Allocation) -> np.ndarray:
        run = _Run(self, problem)
        for _ in track(run.generations(), "evolving widths", self.generations + 1, problem.progress):
            pass
        return run.best()


class _Run:
    def __init__(self, settings: Evolution, problem: Allocation):
        self.settings, self.problem = settings, problem
        self.generator = np.random.default_rng(settings.seed)
        self.known: dict[bytes, float] = {}
        self.whole = problem.evaluate(problem.sizes) if settings.fitness == "reward" else math.nan

    def generations(self) -> Iterator[int]:
        """Run; yields after every generation."""
        genes = self.random(self.settings.population)
        genes[0] = 1.0
        fitness = self.fitness(genes)
        yield 0
        for number in range(1, self.settings.generations + 1):
            genes = self.next(genes[np.argsort(-fitness, kind="stable")])
            fitness = self.fitness(genes)
            yield number

    def next(self, genes: np.ndarray) -> np.ndarray:
        """The generation after one whose candidates are in order, the best first."""
        size = len(genes)
        parents = genes[: max(2, int(_PARENTS * size))]
        mutants = parents[self.generator.integers(0, len(parents), int(_MUTANTS * size))]
        drawn = self.generator.random(mutants.shape) < _MUTATION
        mutants = np.where(drawn, self.random(len(mutants)), mutants)
        mothers, fathers = parents[self.generator.integers(0, len(parents), (2, int(_CROSSED * size)))]
        crossed = np.where(self.generator.random(mothers.shape) < 0.5, mothers, fathers)
        return np.concatenate([parents, mutants, crossed, self.random(size)])[:size]

    def random(self, count: int) -> np.ndarray:
        return self.generator.uniform(0.1, 1.0, (count, len(self.problem.sizes)))

    def widths(self, genes: np.ndarray) -> np.ndarray:
        """Kept counts of a candidate: its fractions times the largest factor that the budget allows."""
        problem = self.problem

        def scaled(step: int) -> np.ndarray:
            return problem.legal(
                np.floor(np.minimum(1.0, step / _RESOLUTION * genes) * problem.sizes + 0.5).astype(int)
            )

        if self.settings.fitness == "reward":
            # A candidate may stay below the budget.
            return scaled(last_feasible(lambda step: problem.feasible(scaled(step)), 0, _RESOLUTION))
        most = math.ceil(_RESOLUTION / genes.min())
        kept = scaled(last_feasible(lambda step: problem.feasible(scaled(step)), 0, most))
        return top_up(problem, kept, np.argsort(-genes, kind="stable"))

    def fitness(self, genes: np.ndarray) -> np.ndarray:
        widths = [self.widths(row) for row in genes]
        fresh = {kept.tobytes(): kept for kept in widths if kept.tobytes() not in self.known}
        for key, score in zip(fresh, self.problem.evaluate_all(list(fresh.values())), strict=True):
            self.known[key] = self.rewarded(score, fresh[key])
        return np.array([self.known[kept.tobytes()] for kept in widths])

    def rewarded(self, score: float, kept: np.ndarray) -> float:
        if self.settings.fitness == "score":
            return score
        share = self.problem.cost(kept) / self.problem.cost(self.problem.sizes)
        return (self.whole / max(self.whole - score, 1e-3)) ** 2 * -math.log(share)

    def best(self) -> np.ndarray:
        return np.frombuffer(max(self.known, key=self.known.__getitem__), dtype=self.problem.sizes.dtype).copy()
