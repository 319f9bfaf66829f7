"""Rounds of `benchmark_model` on a phone, made into a report."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tflite_bench.android.adb import Phone
from tflite_bench.android.output import PhoneBlock
from tflite_bench.android.phone import phone_info, thermal_status
from tflite_bench.android.tool import PhoneTool, check_program
from tflite_bench.checks import check_integers, check_paths, check_rounds, check_seconds, wrong
from tflite_bench.errors import BenchError
from tflite_bench.progress import progress_bar
from tflite_bench.report import BenchReport, ModelTiming

# Of the first model, between the first round and the end; more is worth a note.
_DRIFT = 0.05


def benchmark_on_android(
    paths: Sequence[str | os.PathLike[str]],
    *,
    binary: str | os.PathLike[str],
    serial: str | None = None,
    threads: int = 1,
    runs: int = 100,
    warmup: int = 10,
    rounds: int = 5,
    taskset: str | None = None,
    delay_s: float = 1.0,
    progress: bool = False,
) -> BenchReport:
    """Time `.tflite` files against each other on an Android phone.

    The phone runs rounds of the form A B C, A B C, ..., each model in a process of its own, and the first model once
    more at the end: where it has become slower by then, the phone was too warm, and a note says so. Ratios are taken
    within a round. `benchmark_model` gives no 90th percentile and no CPU time, so these are None. The phone must be
    64-bit (arm64-v8a) with Android 7 or later. `tflite_bench.android` tells how to get the program.

    Args:
        paths: the files; ratios are relative to the first one. A file listed twice shows the noise.
        binary: the program `benchmark_model` for Android arm64, on this computer.
        serial: serial number of the phone as `adb devices` shows it (None: the only one that is ready).
        threads: threads of the interpreter (1); early builds of the LiteRT program ignore it.
        runs: timed runs of each file, in all (100).
        warmup: smallest number of untimed runs at the beginning of each process (10); they take at least half a
            second, in which the cores speed up.
        rounds: number of rounds, at most `runs` (5).
        taskset: hexadecimal mask of the cores to use, "f0" for cores 4 to 7 (None: the phone chooses, and may change
            from slow to fast cores in between).
        delay_s: pause before each process in seconds, in which the phone cools down (1).
        progress: show a progress bar on stderr (False).

    Returns:
        The timings, one entry per path in the given order, the phone in `machine`, and notes on heat and drift.
        `load_ms` is the median time that a fresh process takes to open and prepare the model.

    Raises:
        BenchError: adb or the phone is missing or not ready, a file is missing, a setting is out of range, or
            `benchmark_model` does not run, or not with one of the models.
    """
    paths = _checked_files(paths)
    check_program(Path(binary))
    _check_settings(threads, runs, warmup, rounds, taskset, delay_s)
    phone = Phone(serial)
    info = phone_info(phone)
    if info["abi"] != "arm64-v8a":
        raise BenchError(
            f"expected an arm64-v8a phone. Received: abi={info['abi']!r} ({info['phone']}, {phone.serial})."
        )
    notes: list[str] = []
    heat = [thermal_status(phone)]
    try:
        tool = PhoneTool(phone, Path(binary), paths, threads, warmup, taskset)
        with progress_bar(rounds * len(paths) + 1, progress) as advance:
            blocks, last = _run_rounds(tool, len(paths), runs, rounds, delay_s, advance)
        heat.append(thermal_status(phone))
    finally:
        removed = phone.remove_folder()
    if not removed:
        notes.append(f"{phone.folder} could not be removed from the phone")
    drift = _centre(last) / _centre(blocks[0][0]) - 1
    notes += _notes(tool, taskset, heat, drift, blocks, runs)
    return BenchReport(
        machine={**info, "tool": tool.name, "thermal_status": heat, "baseline_drift": drift},
        settings={
            "threads": threads,
            "runs": runs,
            "warmup": warmup,
            "rounds": rounds,
            "taskset": taskset,
            "delay_s": delay_s,
        },
        models=tuple(_summarise(path, threads, own, blocks[0]) for path, own in zip(paths, blocks, strict=True)),
        notes=tuple(notes),
    )


def _run_rounds(
    tool: PhoneTool, count: int, runs: int, rounds: int, delay_s: float, advance: Callable[[str], None]
) -> tuple[list[list[PhoneBlock]], PhoneBlock]:
    """Deal the runs over interleaved rounds; the second result is the first model once more at the end."""
    shares = [runs * (number + 1) // rounds - runs * number // rounds for number in range(rounds)]
    blocks: list[list[PhoneBlock]] = [[] for _ in range(count)]
    for share in shares:
        for index, own in enumerate(blocks):
            time.sleep(delay_s)
            own.append(tool.time(index, share))
            advance(f"model {index + 1}")
    time.sleep(delay_s)
    last = tool.time(0, shares[0])
    advance("model 1 again")
    return blocks, last


def _centre(block: PhoneBlock) -> float:
    return block.mean_ms if block.median_ms is None else block.median_ms


def _summarise(path: Path, threads: int, blocks: Sequence[PhoneBlock], baseline: Sequence[PhoneBlock]) -> ModelTiming:
    ratios = np.array([_centre(own) / _centre(first) for own, first in zip(blocks, baseline, strict=True)])
    medians = [block.median_ms for block in blocks if block.median_ms is not None]
    runs = [block.runs for block in blocks]
    return ModelTiming(
        path=os.fspath(path),
        bytes=path.stat().st_size,
        threads=threads,
        load_ms=float(np.median([block.init_ms for block in blocks])),
        p50_ms=float(np.median(medians)) if medians else None,
        p90_ms=None,
        min_ms=min(block.min_ms for block in blocks),
        mean_ms=float(np.average([block.mean_ms for block in blocks], weights=runs)),
        runs=sum(runs),
        cpu_wall=None,
        ratio_to_first=float(np.median(ratios)),
        ratio_low=float(ratios.min()),
        ratio_high=float(ratios.max()),
    )


def _notes(
    tool: PhoneTool,
    taskset: str | None,
    heat: Sequence[str | None],
    drift: float,
    blocks: Sequence[Sequence[PhoneBlock]],
    runs: int,
) -> list[str]:
    notes = []
    if abs(drift) > _DRIFT:
        change = "slower" if drift > 0 else "faster"
        notes.append(
            f"the first model was {abs(drift):.0%} {change} at the end than in the first round: the phone changed its "
            "speed; let it cool down and repeat with a longer pause (delay_s, --delay)"
        )
    if any(state not in (None, "none") for state in heat):
        notes.append(f"the phone reports heat: thermal status {heat[0]} before and {heat[-1]} after the runs")
    if None in heat:
        notes.append("the phone does not tell its thermal status (Android 10 and later do)")
    if taskset is None:
        notes.append("the phone chose the cores; times of fast and slow ones may be mixed (taskset, --taskset)")
    if any(block.median_ms is None for own in blocks for block in own):
        notes.append("this benchmark_model gives no median: ratios and drift are those of the means")
    if any(sum(block.runs for block in own) < runs for own in blocks):
        notes.append(f"a model is so slow that benchmark_model made fewer than {runs} runs (it stops after 150 s)")
    notes += [f"benchmark_model does not know and ignored: {flags}" for flags in sorted(tool.ignored)]
    return notes


def _checked_files(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    files = check_paths(paths)
    for path in files:
        with path.open("rb") as file:
            if file.read(8)[4:] != b"TFL3":
                raise BenchError(f"{path}: this is no .tflite file")
    return files


def _check_settings(threads: int, runs: int, warmup: int, rounds: int, taskset: str | None, delay_s: float) -> None:
    check_integers(threads=threads, runs=runs)
    check_integers(0, warmup=warmup)
    check_rounds(rounds, runs)
    check_seconds("delay_s", delay_s, least=0)
    if taskset is not None and not re.fullmatch("0*[1-9a-fA-F][0-9a-fA-F]*", taskset):
        raise wrong("taskset", taskset, "a hexadecimal mask of cores, such as 'f0'")
