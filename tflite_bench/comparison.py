"""Is one file faster than another? A ratio with a confidence interval, and a verdict."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tflite_bench.checks import check_integers, check_rounds, check_threads
from tflite_bench.machine import LoadWatch
from tflite_bench.pinning import choose_cores, pinned
from tflite_bench.progress import progress_bar
from tflite_bench.report import JsonResult
from tflite_bench.runner import Runner

_CONFIDENCE = 0.95
# Caches and the processor's clock settle within these.
_WARM_UP = 3


@dataclass(frozen=True)
class Comparison(JsonResult):
    """The result of `compare`.

    Attributes:
        first: the file that the other is compared with.
        second: the other file.
        ratio: time of the second over time of the first, geometric mean over the rounds; below 1 is faster.
        ratio_low: lower end of the ratio's 95 % confidence interval.
        ratio_high: upper end.
        round_ratios: the ratio of each round.
        machine: processor, versions and how busy it was, before and after.
        settings: threads, runs, rounds, runtime and cores.
        notes: what a reader of the figures must know, one sentence each.
    """

    first: str
    second: str
    ratio: float
    ratio_low: float
    ratio_high: float
    round_ratios: tuple[float, ...]
    machine: dict[str, Any]
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """ "faster" or "slower" of the second file if the interval leaves 1 out, else "no difference shown"."""
        if self.ratio_high < 1:
            return "faster"
        return "slower" if self.ratio_low > 1 else "no difference shown"

    def __str__(self) -> str:
        first, second = Path(self.first).name, Path(self.second).name
        return (
            f"{second} against {first}: {self.verdict}, {self.ratio:.3f} times the time "
            f"(95 % interval {self.ratio_low:.3f} to {self.ratio_high:.3f}, {len(self.round_ratios)} rounds)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready values.

        Returns:
            `{"format": 1, "first": ..., "second": ..., "ratio": ..., ..., "verdict": ...}`.
        """
        return {"format": 1} | asdict(self) | {"verdict": self.verdict}


def compare(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    threads: int = 1,
    runs: int = 200,
    rounds: int = 20,
    runtime: str = "interpreter",
    pin: bool = True,
    progress: bool = False,
) -> Comparison:
    """Compare two `.tflite` files on this computer.

    Two copies of one file in memory differ in time, by a percent or so, because of where they lie. So each round
    loads both files anew, in the other order than the round before, and gives one ratio, of their fastest runs. The
    interval is Student's, for the mean of the ratios' logarithms.

    Args:
        first: the file to compare with.
        second: the other file.
        threads: threads LiteRT computes with (1).
        runs: timed runs of each file, in all (200).
        rounds: number of rounds, at least 3 and at most `runs` (20).
        runtime: "interpreter" (the default) or "compiled".
        pin: keep each thread on a core of its own, as `benchmark` does (True).
        progress: show a progress bar on stderr (False).

    Returns:
        The comparison.

    Raises:
        BenchError: a file is missing or damaged, or a setting is out of range.

    Example:
        >>> compare("dense.tflite", "pruned.tflite").ratio
        0.52
    """
    check_threads(threads)
    check_integers(runs=runs)
    check_rounds(rounds, runs, least=3)
    watch = LoadWatch()
    paths, ratios = [first, second], []
    for path in paths:
        # What is wrong with a file is said before the work begins.
        Runner(path, threads, runtime=runtime)
    cores, note = choose_cores(threads) if pin else ([], None)
    with progress_bar(rounds, progress) as advance:
        for index in range(rounds):
            share = runs * (index + 1) // rounds - runs * index // rounds
            order = (0, 1) if index % 2 else (1, 0)
            runners = {which: Runner(paths[which], threads, runtime=runtime) for which in order}
            with pinned(cores, [runner.worker_ids for runner in runners.values()]):
                fastest = {which: _fastest_ms(runner, share) for which, runner in runners.items()}
            ratios.append(fastest[1] / fastest[0])
            advance(f"round {index + 1}")
    mean, half = _mean_and_half_width(np.log(ratios))
    return Comparison(
        first=os.fspath(first),
        second=os.fspath(second),
        ratio=float(np.exp(mean)),
        ratio_low=float(np.exp(mean - half)),
        ratio_high=float(np.exp(mean + half)),
        round_ratios=tuple(ratios),
        machine=watch.machine(),
        settings={"threads": threads, "runs": runs, "rounds": rounds, "runtime": runtime, "cores": cores or None},
        notes=(note,) if note else (),
    )


def _fastest_ms(runner: Runner, runs: int) -> float:
    runner.warm_up(_WARM_UP)
    return float(runner.time(runs).run_ms.min())


def _mean_and_half_width(values: np.ndarray) -> tuple[float, float]:
    from scipy.stats import sem, t

    return float(values.mean()), float(sem(values) * t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1))
