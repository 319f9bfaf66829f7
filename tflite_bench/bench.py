"""Interleaved timing of several `.tflite` files."""

import os
from collections.abc import Sequence

import numpy as np

from tflite_bench.report import BenchReport, ModelTiming, machine_info
from tflite_bench.rounds import progress_bar, run_interleaved
from tflite_bench.runner import BenchError, Block, Runner


def benchmark(
    paths: Sequence[str | os.PathLike[str]],
    *,
    threads: int = 1,
    runs: int = 100,
    warmup: int = 10,
    rounds: int = 5,
    progress: bool = False,
) -> BenchReport:
    """Time `.tflite` files against each other on this computer.

    All files are loaded first. The runs are then dealt over rounds of the form A B C, A B C, ..., so that a slow
    minute of the computer hits every file alike, and ratios are taken within a round.

    Args:
        paths: The files; ratios are relative to the first one. A file listed twice shows the noise.
        threads: Threads of the LiteRT interpreter.
        runs: Timed runs of each file, in all.
        warmup: Untimed runs of each file before the first round. Later blocks begin with one.
        rounds: Number of rounds, at most `runs`.
        progress: Show a progress bar on stderr.

    Returns:
        The timings, one entry per path in the given order.

    Raises:
        BenchError: A file is missing or damaged, the list is empty, or a setting is out of range.

    Example:
        >>> report = benchmark(["dense.tflite", "pruned.tflite"], runs=200)
        >>> report.models[1].ratio_to_first
        0.52
    """
    if isinstance(paths, (str, os.PathLike)) or not paths:
        raise BenchError(f"paths must be a list of at least one .tflite file, got {paths!r}")
    for name, value, smallest in (("threads", threads, 1), ("runs", runs, 1), ("warmup", warmup, 0)):
        if value < smallest:
            raise BenchError(f"{name} must be at least {smallest}, got {name}={value}")
    if not 1 <= rounds <= runs:
        raise BenchError(f"rounds must be between 1 and runs={runs}, got rounds={rounds}")
    # The first load of a process also initialises LiteRT; it would be charged to the first file.
    Runner(paths[0], threads)
    runners = [Runner(path, threads) for path in paths]
    machine = machine_info()
    with progress_bar(rounds * len(runners), progress) as advance:
        blocks = run_interleaved(runners, [runs] * len(runners), warmup, rounds, advance)
    baseline = _block_medians(blocks[0])
    return BenchReport(
        machine=machine,
        settings={"threads": threads, "runs": runs, "warmup": warmup, "rounds": rounds},
        models=tuple(
            _summarise(runner, threads, own, _block_medians(own) / baseline)
            for runner, own in zip(runners, blocks, strict=True)
        ),
    )


def _block_medians(blocks: Sequence[Block]) -> np.ndarray:
    return np.array([np.median(block.run_ms) for block in blocks])


def _summarise(runner: Runner, threads: int, blocks: Sequence[Block], ratios: np.ndarray) -> ModelTiming:
    run_ms = np.concatenate([block.run_ms for block in blocks])
    p50, p90 = np.percentile(run_ms, [50, 90])
    return ModelTiming(
        path=os.fspath(runner.path),
        bytes=runner.bytes,
        threads=threads,
        load_ms=runner.load_ms,
        p50_ms=float(p50),
        p90_ms=float(p90),
        min_ms=float(run_ms.min()),
        mean_ms=float(run_ms.mean()),
        runs=len(run_ms),
        cpu_wall=sum(block.cpu_s for block in blocks) / sum(block.wall_s for block in blocks),
        ratio_to_first=float(np.median(ratios)),
        ratio_low=float(ratios.min()),
        ratio_high=float(ratios.max()),
    )
