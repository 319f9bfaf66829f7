"""Where a file spends its time: one row per operator."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tflite_bench.checks import check_integers, check_threads
from tflite_bench.errors import BenchError
from tflite_bench.fresh import run_fresh
from tflite_bench.machine import machine_info
from tflite_bench.report import JsonResult
from tflite_bench.runner import Runner

# The profiler's interface is not a promise of LiteRT's.
_KNOWN_VERSION = "2.3.0"
# Largest part of the whole that operators may leave unexplained without a note.
_UNSEEN = 0.07


@dataclass(frozen=True)
class OperatorTime:
    """Time of one operator inside a file.

    Attributes:
        operator: its name: XNNPACK's if it was delegated, TFLite's if not. An activation may be part of it.
        ms: fastest run in ms. LiteRT gives whole microseconds, cut off: this is the middle between them, or 0 for less
            than one.
        share: its part of the sum over all operators.
        delegated: whether XNNPACK runs it; LiteRT's own kernels are slower, some of them many times.
    """

    operator: str
    ms: float
    share: float
    delegated: bool


@dataclass(frozen=True)
class Profile(JsonResult):
    """The result of `profile`.

    Attributes:
        path: the file as it was given.
        machine: processor, load average and versions.
        settings: threads, runs and cores.
        whole_ms: fastest run of the whole file in ms, without the profiler, in turn with profiled runs.
        operators: one row per operator, in the order in which they run.
        notes: what a reader of the figures must know, one sentence each.
    """

    path: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    whole_ms: float
    operators: tuple[OperatorTime, ...]
    notes: tuple[str, ...] = ()

    @property
    def sum_ms(self) -> float:
        """Sum over the operators in ms; what the file takes more are calls, and operators of less than 1 us."""
        return sum(row.ms for row in self.operators)

    def table(self) -> Table:
        """Lay the rows out for a terminal.

        Returns:
            A `rich` table, one row per operator that took at least a microsecond; the others share the last one.
        """
        title = f"{os.path.basename(self.path)}: {self.whole_ms:.3f} ms, operators {self.sum_ms:.3f} ms"
        caption = Text("\n".join(f"- {note}" for note in self.notes), "table.caption") if self.notes else None
        table = Table(caption=caption, caption_justify="left", box=box.SIMPLE, padding=0, pad_edge=False)
        # Names may hold brackets, which rich takes for markup in a str.
        table.title = Text(title, "table.title")
        table.add_column("operator", overflow="fold")
        for column in ("ms", "share", "run by"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.operators:
            if row.ms:
                table.add_row(
                    Text(row.operator), f"{row.ms:.3f}", f"{row.share:.1%}", "XNNPACK" if row.delegated else "LiteRT"
                )
        short = Counter(row.delegated for row in self.operators if not row.ms)
        for delegated, count in short.items():
            table.add_row(f"{count} of less than 1 us", "-", "-", "XNNPACK" if delegated else "LiteRT")
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON-ready values.

        Returns:
            `{"format": 1, "path": ..., "machine": {...}, "settings": {...}, "whole_ms": ..., "operators": [{...}],
            "notes": [...]}`.
        """
        return {"format": 1} | asdict(self)


def profile(path: str | os.PathLike[str], *, threads: int = 1, runs: int = 200, pin: bool = True) -> Profile:
    """Time each operator of a `.tflite` file on this computer, in a process of its own.

    It is LiteRT's `CompiledModel` on the CPU that is profiled; it computes with the same XNNPACK as the interpreter.

    Args:
        path: the file.
        threads: threads LiteRT computes with (1).
        runs: profiled runs; each operator's fastest counts (200).
        pin: keep each thread on a core of its own, as `benchmark` does (True).

    Returns:
        The profile.

    Raises:
        BenchError: the file is missing or damaged, a setting is out of range, or this version of LiteRT cannot be
            profiled.

    Example:
        >>> found = profile("model.tflite", runs=20)
        >>> found.operators[0].operator
        'Convolution (NHWC, F32) IGEMM'
    """
    check_threads(threads)
    check_integers(runs=runs)
    # What is wrong with the file is said here.
    runner = Runner(path, threads)
    machine = machine_info()
    try:
        found = run_fresh("child_profile", runner.path, threads, runs, pin)
    except BenchError as error:
        raise BenchError(
            f"LiteRT could not be profiled; the profiler is known to work with ai-edge-litert {_KNOWN_VERSION}, this "
            f"is {machine['litert']} ({error})"
        ) from error
    total = sum(ms for *_, ms in found["operators"]) or 1.0
    rows = tuple(OperatorTime(name, ms, ms / total, delegated) for name, delegated, ms in found["operators"])
    unseen = 1 - sum(row.ms for row in rows) / found["whole_ms"]
    notes = [found["note"]] if found["note"] else []
    if unseen > _UNSEEN:
        notes.append(f"{unseen:.0%} of the file's time is not in the rows: calls, and operators of less than 1 us")
    return Profile(
        path=os.fspath(path),
        machine=machine,
        settings={"threads": threads, "runs": runs, "cores": found["cores"]},
        whole_ms=found["whole_ms"],
        operators=rows,
        notes=tuple(notes),
    )
