"""FP-OMP Search (Purohit et al. 2022): cut a few units where it hurts least, measure, repeat."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_filterprune.allocators.base import Allocation, Allocator, top_up
from keras_filterprune.checkpoint import Checkpoint
from keras_filterprune.checks import check_flag, check_integer, check_number
from keras_filterprune.probe.metrics import check_metric, metric_name
from keras_filterprune.progress import track

_NOTHING = 1e-6


@dataclass
class SearchState:
    """Where a search stands.

    Attributes:
        score: of the model as it is now.
        rounds: [(group number, units it keeps, score)] of every step taken.
        queue: [(loss per cost, group number, round it was measured in, score)], a heap.
    """

    score: float
    rounds: list[tuple[int, int, float]] = field(default_factory=list)
    queue: list[tuple[float, int, int, float]] = field(default_factory=list)


class Search(Allocator):
    """Remove `beta` units of the group whose loss is least, measure again, until the budget is met.

    FP-OMP Search (Purohit et al. 2022). Every round tries groups on the masked network, their consumers refitted,
    without rebuilding anything. Groups are tried lazily, in the order of the loss last seen: as losses grow with what
    has been removed, most of them need no new trial. With `prune_model(finetune=)` the model is rebuilt and handed to
    the hook after every round.

    Args:
        beta: units removed per round (5, as in the paper), or the nearest number that leaves a width worth having.
        measure: what is to stay high, a metric as in `measure_sensitivity` ("auto": accuracy of classes, else minus the
            compiled loss; the paper has the accuracy, and HBGTS, its successor of 2024, the error). `data` is
            labelled, and not the test split; for "error" it has no labels.
        alpha: groups are compared by loss / cost saved^alpha (1.0); 0 is the paper's plain loss.
        checkpoint: JSON file that is written after every round (None). A search that finds one goes on from there,
            also towards a smaller budget.
        exhaustive: try every group in every round, as the paper does (False): losses that do not grow, as measured on
            few samples or after training, then mislead no queue, at the price of a trial per group and round.

    Raises:
        InvalidValueError: beta, alpha or exhaustive is out of range.
        UnknownNameError: measure is not known.
        FileError: the checkpoint is damaged, or belongs to another model, method or data.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.allocators.Search(beta=8, measure="error").beta
        8
    """

    def __init__(
        self,
        beta: int = 5,
        measure: Any = "auto",
        alpha: float = 1.0,
        checkpoint: str | os.PathLike | None = None,
        exhaustive: bool = False,
    ):
        self.beta, self.measure = check_integer("beta", beta, "a number of units"), check_metric("measure", measure)
        self.alpha = check_number("alpha", alpha, "the exponent of the cost", least=0)
        self.checkpoint, self.exhaustive = Checkpoint(checkpoint), check_flag("exhaustive", exhaustive)

    def __repr__(self) -> str:
        measure = metric_name(self.measure)
        return f"Search(beta={self.beta}, measure={measure!r}, alpha={self.alpha}, exhaustive={self.exhaustive})"

    def allocate(self, problem: Allocation) -> np.ndarray:
        found = self.resume(problem.key)
        state = found[0] if found else SearchState(problem.evaluate(problem.sizes))
        keep = problem.sizes.copy()
        for group, units, _ in state.rounds:
            if not problem.feasible(keep):
                keep[group] = units
        for _ in track(self._percents(problem, keep, state), "searching", 100, problem.progress):
            pass
        return top_up(problem, keep, list(dict.fromkeys(group for group, _, _ in reversed(state.rounds))))

    def _percents(self, problem: Allocation, keep: np.ndarray, state: SearchState) -> Iterator[int]:
        """Rounds until the budget is met; yields once per percent of the way there."""
        start = problem.cost(keep)
        done = 0
        while not problem.feasible(keep):
            group, units, _ = self.step(problem, keep, state)
            keep[group] = units
            self.save(problem.key, state)
            now = int(100 * (start - problem.cost(keep)) / (start - problem.limit))
            yield from range(done, min(now, 100))
            done = max(done, now)

    def step(self, problem: Allocation, keep: np.ndarray, state: SearchState) -> tuple[int, int, float]:
        """One round: (group number, units it keeps, score then), also appended to `state.rounds`."""
        number = len(state.rounds)
        least = problem.legal(problem.floors)
        if self.exhaustive or not state.queue:
            groups = np.flatnonzero(least < keep)
            state.queue = [self._tried(problem, keep, state, int(group), number) for group in groups]
            heapq.heapify(state.queue)
        while True:
            _, group, measured, score = heapq.heappop(state.queue)
            if keep[group] <= least[group]:
                continue
            if measured == number:
                break
            heapq.heappush(state.queue, self._tried(problem, keep, state, group, number))
        taken = group, int(self._fewer(problem, keep, group)[group]), score
        state.rounds.append(taken)
        state.score = score
        # The group's own next loss is at least this one.
        heapq.heappush(state.queue, (0.0, group, number, score))
        return taken

    def _tried(
        self, problem: Allocation, keep: np.ndarray, state: SearchState, group: int, number: int
    ) -> tuple[float, int, int, float]:
        """The queue's entry of a group, measured now."""
        fewer = self._fewer(problem, keep, group)
        score = problem.evaluate(fewer)
        saved = problem.cost(keep) - problem.cost(fewer)
        # Where nothing is lost, the group that saves most goes first.
        loss = max(state.score - score, _NOTHING)
        return loss / max(saved, 1) ** self.alpha, group, number, score

    def _fewer(self, problem: Allocation, keep: np.ndarray, group: int) -> np.ndarray:
        fewer = keep.copy()
        fewer[group] = problem.narrower(group, int(keep[group]), self.beta)
        return problem.legal(fewer)

    def resume(self, key: str) -> tuple[SearchState, dict] | None:
        """The state in the checkpoint and what else was saved with it, None if there is no checkpoint.

        Raises:
            FileError: the checkpoint is damaged or has another key.
        """

        def parse(content: dict) -> tuple[SearchState, dict]:
            rounds, queue = ([tuple(entry) for entry in content[name]] for name in ("rounds", "queue"))
            return SearchState(float(content["score"]), rounds, queue), dict(content["more"])

        return self.checkpoint.read(key, parse)

    def save(self, key: str, state: SearchState) -> None:
        """Write the checkpoint, if one is wanted, in one step."""
        self.checkpoint.write(key, vars(state) | {"more": {}})
