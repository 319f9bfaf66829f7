"""Interleaved rounds A B C, A B C, ...: what both benchmarks do with their models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tflite_bench.runner import Block, Runner


def run_interleaved(
    runners: Sequence[Runner], runs: Sequence[int], warmup: int, rounds: int, advance: Callable[[str], None]
) -> list[list[Block]]:
    """Deal the runs of several models over interleaved rounds.

    Args:
        runners: the models.
        runs: timed runs of each model, in all; at least `rounds`.
        warmup: untimed runs of each model before the first round. Later blocks begin with one, unless it is 0.
        rounds: number of rounds.
        advance: called with a model's name after each of its blocks.

    Returns:
        For each model one block per round.
    """
    blocks: list[list[Block]] = [[] for _ in runners]
    for runner in runners:
        runner.warm_up(warmup)
    for index in range(rounds):
        for runner, count, own in zip(runners, runs, blocks, strict=True):
            # The model timed before has taken the caches.
            runner.warm_up(min(warmup, 1))
            own.append(runner.time(count * (index + 1) // rounds - count * index // rounds))
            advance(runner.path.name)
    return blocks
