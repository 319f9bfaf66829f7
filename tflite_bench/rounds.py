"""Interleaved rounds A B C, A B C, ...: what both benchmarks do with their models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tflite_bench.runner import Block, Runner


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Callable[[str], None]]:
    """Show a progress bar on stderr.

    Args:
        total: number of steps.
        shown: False: nothing is shown.

    Yields:
        What to call after each step, with the name of what was done.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # No refresh thread: it would take CPU time from the runs.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, disable=not shown) as bar:
        task = bar.add_task("timing", total=total)
        yield lambda name: bar.update(task, advance=1, description=name, refresh=True)


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
