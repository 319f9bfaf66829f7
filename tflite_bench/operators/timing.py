"""Interleaved timing of single operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tflite_bench.checks import check_integers, check_seconds, check_threads, wrong
from tflite_bench.machine import machine_info
from tflite_bench.operators.model import operator_model
from tflite_bench.operators.operator import Operator
from tflite_bench.operators.report import OperatorReport, OperatorTiming
from tflite_bench.progress import progress_bar
from tflite_bench.rounds import run_interleaved
from tflite_bench.runner import Runner

# Operators loaded at a time: each holds its tensors and a packed copy of its weights.
_CHUNK = 64
_RUNS_PER_ROUND = 3
# One comparison: as good as nothing beside the call. Like nearly all operators it is run by XNNPACK, so that the call
# of the delegate is part of the floor.
CALL_FLOOR = Operator("RELU", 1)


def time_operators(
    operators: Iterable[Operator],
    *,
    threads: int = 1,
    rounds: int = 5,
    seconds: float = 0.01,
    progress: bool = False,
) -> OperatorReport:
    """Time single operators with the LiteRT runtime on this computer.

    Each operator is a model of its own. They are loaded in chunks and run in rounds of the form A B C, A B C, ..., so
    that a slow moment of the computer does not hit one operator alone. An operator that is listed twice is timed once.

    Args:
        operators: what to time.
        threads: threads of the LiteRT interpreter (1).
        rounds: number of rounds (5).
        seconds: time for the runs of one operator, over all rounds (0.01); a slow operator runs at least three times in
            each.
        progress: show a progress bar on stderr (False).

    Returns:
        The timings, one entry per distinct operator in the order of the first appearance.

    Raises:
        BenchError: the list is empty or holds something else, LiteRT has no such operator, or a setting is out of
            range.

    Example:
        >>> report = time_operators([Operator("CONV_2D", width, (16, 16), kernel=(3, 3)) for width in (8, 64)])
        >>> report.operators[1].us
        178.2
    """
    wanted = distinct_operators(operators)
    check_threads(threads)
    check_integers(rounds=rounds)
    check_seconds("seconds", seconds)
    timed = list(dict.fromkeys([CALL_FLOOR, *wanted]))
    machine = machine_info()
    timings: dict[Operator, OperatorTiming] = {}
    with progress_bar(len(timed) * rounds, progress) as advance:
        for start in range(0, len(timed), _CHUNK):
            chunk = timed[start : start + _CHUNK]
            timings |= _time_chunk(chunk, threads, rounds, seconds, advance)
    return OperatorReport(
        machine=machine,
        settings={"threads": threads, "rounds": rounds, "seconds": seconds},
        call_floor_us=timings[CALL_FLOOR].us,
        operators=tuple(timings[operator] for operator in wanted),
    )


def _time_chunk(
    operators: Sequence[Operator], threads: int, rounds: int, seconds: float, advance: Callable[[str], None]
) -> dict[Operator, OperatorTiming]:
    runners = [Runner(str(operator), threads, content=operator_model(operator)) for operator in operators]
    runs = [max(_RUNS_PER_ROUND * rounds, round(seconds / _run_seconds(runner))) for runner in runners]
    timings = {}
    for operator, own in zip(operators, run_interleaved(runners, runs, 1, rounds, advance), strict=True):
        run_us = np.concatenate([block.run_ms for block in own]) * 1e3
        # The clock counts nanoseconds; more digits are noise of the division.
        timings[operator] = OperatorTiming(operator, round(float(run_us.min()), 3), round(float(np.median(run_us)), 3))
    return timings


def distinct_operators(operators: Iterable[Operator]) -> Sequence[Operator]:
    """The operators, each once, if they are a list of at least one."""
    listed = list(operators) if isinstance(operators, Iterable) and not isinstance(operators, str | bytes) else []
    if not listed or not all(isinstance(operator, Operator) for operator in listed):
        raise wrong("operators", operators, "a list of at least one Operator, and of nothing else")
    return list(dict.fromkeys(listed))


def _run_seconds(runner: Runner) -> float:
    # The first run allocates; the fastest of the next ones is what a run takes.
    runner.warm_up(1)
    return float(runner.time(_RUNS_PER_ROUND).run_ms.min()) / 1e3
