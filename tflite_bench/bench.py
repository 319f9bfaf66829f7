"""Interleaved timing of several `.tflite` files."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from tflite_bench.checks import check_integers, check_paths, check_rounds, check_threads
from tflite_bench.cold import Cold, measure_cold
from tflite_bench.machine import LoadWatch
from tflite_bench.pinning import choose_cores, pinned
from tflite_bench.progress import progress_bar
from tflite_bench.report import BenchReport, ModelTiming
from tflite_bench.rounds import run_interleaved
from tflite_bench.runner import Block, Runner

# Share of its time for which a thread that never waits has the CPU; below, others had it.
_BUSY = 0.9


def benchmark(
    paths: Sequence[str | os.PathLike[str]],
    *,
    threads: int = 1,
    runs: int = 100,
    warmup: int = 10,
    rounds: int = 5,
    runtime: str = "interpreter",
    pin: bool = True,
    cold: bool = True,
    progress: bool = False,
) -> BenchReport:
    """Time `.tflite` files against each other on this computer.

    All files are loaded first. The runs are then dealt over rounds of the form A B C, A B C, ..., so that a slow
    minute of the computer hits every file alike, and ratios are taken within a round.

    Args:
        paths: the files; ratios are relative to the first one. A file listed twice shows the noise.
        threads: threads LiteRT computes with (1).
        runs: timed runs of each file, in all (100).
        warmup: untimed runs of each file before the first round (10). Later blocks begin with one.
        rounds: number of rounds, at most `runs` (5).
        runtime: "interpreter" (the default), or "compiled" for LiteRT's `CompiledModel` on the CPU; both compute with
            XNNPACK.
        pin: keep each thread on a core of its own, the idlest ones (True). Where this is impossible, a note says so.
            False leaves the threads to the system, which may put two on one core.
        cold: also measure load time and peak memory, with a fresh process for each file, a third of a second (True).
        progress: show a progress bar on stderr (False).

    Returns:
        The timings, one entry per path in the given order.

    Raises:
        BenchError: a file is missing or damaged, the list is empty, or a setting is out of range.

    Example:
        >>> report = benchmark(["dense.tflite", "pruned.tflite"], runs=200)
        >>> report.models[1].ratio_to_first
        0.52
    """
    paths = check_paths(paths)
    check_threads(threads)
    check_integers(runs=runs)
    check_integers(0, warmup=warmup)
    check_rounds(rounds, runs)
    watch = LoadWatch()
    runners = [Runner(path, threads, runtime=runtime) for path in paths]
    colds = [measure_cold(runner.path, threads, runtime) if cold else None for runner in runners]
    cores, note = choose_cores(threads) if pin else ([], None)
    with (
        pinned(cores, [runner.worker_ids for runner in runners]),
        progress_bar(rounds * len(runners), progress) as advance,
    ):
        blocks = run_interleaved(runners, [runs] * len(runners), warmup, rounds, advance)
    models = tuple(
        _summarise(runner, threads, own, block_medians(own) / block_medians(blocks[0]), first_use)
        for runner, own, first_use in zip(runners, blocks, colds, strict=True)
    )
    notes = [note] if note else []
    share = min(model.cpu_wall or 0.0 for model in models)
    if share < _BUSY:
        notes.append(f"the computer was busy, a file had the CPU for {share:.0%} of its time: trust the minimum only")
    return BenchReport(
        machine=watch.machine(),
        settings={"threads": threads, "runs": runs, "warmup": warmup, "rounds": rounds}
        | {"runtime": runtime, "cores": cores or None},
        models=models,
        notes=tuple(notes),
    )


def block_medians(blocks: Sequence[Block]) -> np.ndarray:
    """Median run of each block in ms."""
    return np.array([np.median(block.run_ms) for block in blocks])


def _summarise(
    runner: Runner, threads: int, blocks: Sequence[Block], ratios: np.ndarray, first_use: Cold | None
) -> ModelTiming:
    run_ms = np.concatenate([block.run_ms for block in blocks])
    p10, p50, p90 = np.percentile(run_ms, [10, 50, 90])
    return ModelTiming(
        path=os.fspath(runner.path),
        bytes=runner.bytes,
        threads=threads,
        load_ms=first_use.load_ms if first_use else None,
        p50_ms=float(p50),
        p90_ms=float(p90),
        min_ms=float(run_ms.min()),
        mean_ms=float(run_ms.mean()),
        runs=len(run_ms),
        cpu_wall=sum(block.cpu_s for block in blocks) / sum(block.wall_s for block in blocks),
        ratio_to_first=float(np.median(ratios)),
        ratio_low=float(ratios.min()),
        ratio_high=float(ratios.max()),
        p10_ms=float(p10),
        peak_rss_kb=first_use.peak_rss_kb if first_use else None,
    )
