"""What a benchmark measured: values, table and JSON."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tflite_bench.files import write_json
from tflite_bench.plot import draw


@dataclass(frozen=True)
class ModelTiming:
    """Times of one file.

    Attributes:
        path: the file as it was given.
        bytes: its size in bytes.
        threads: threads LiteRT computes with.
        load_ms: time in ms to open the file and prepare it, once, in a fresh process.
        p50_ms: median run in ms.
        p90_ms: 90th percentile in ms.
        min_ms: fastest run in ms, the figure least disturbed by other programs.
        mean_ms: mean in ms.
        runs: number of timed runs.
        cpu_wall: CPU time over wall time; well below `threads` means that threads waited or shared a core.
        ratio_to_first: median over the rounds of this file's median run over the first file's; below 1 is faster.
        ratio_low: smallest of those per-round ratios.
        ratio_high: largest of them.
        p10_ms: 10th percentile in ms.
        peak_rss_kb: peak memory in kB (1024 bytes) of a fresh process that loads and runs the file, less what it
            held when LiteRT was imported.

    A figure that was not measured, or that a device does not give, is None.
    """

    path: str
    bytes: int
    threads: int
    load_ms: float | None
    p50_ms: float | None
    p90_ms: float | None
    min_ms: float | None
    mean_ms: float | None
    runs: int | None
    cpu_wall: float | None
    ratio_to_first: float | None
    ratio_low: float | None
    ratio_high: float | None
    p10_ms: float | None = None
    peak_rss_kb: int | None = None


class JsonResult(ABC):
    """A result that can be written as JSON."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result as JSON; an existing file is replaced only by a complete one.

        Args:
            path: the file to write.

        Raises:
            OSError: the file cannot be written.
        """
        write_json(path, self.to_dict())


@dataclass(frozen=True)
class BenchReport(JsonResult):
    """The result of `benchmark`.

    Attributes:
        machine: processor, versions and how busy it was, before and after.
        settings: threads, runs, warm-up runs, rounds, runtime and cores.
        models: one entry per file, in the given order.
        notes: what a reader of the figures must know, one sentence each.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    models: tuple[ModelTiming, ...]
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """Lay the timings out for a terminal.

        Returns:
            A `rich` table, one row per file, the notes below it; "-" for what was not measured. The mean and the
            10th percentile stand in `to_dict` only.
        """
        title = (
            f"{self.machine['cpu']}, {self.settings['threads']} thread(s), {self.settings['runs']} runs, times in ms"
        )
        caption = Text("\n".join(f"- {note}" for note in self.notes), "table.caption") if self.notes else None
        table = Table(caption=caption, caption_justify="left", box=box.SIMPLE, padding=0, pad_edge=False)
        # Names may hold brackets, which rich takes for markup in a str.
        table.title = Text(title, "table.title")
        table.add_column("file", overflow="fold", min_width=13)
        for column in ("kB", "peak\nMB", "load", "min", "p50", "p90", "cpu/\nwall", "x\nfirst", "range"):
            table.add_column(column, justify="right", no_wrap=True)
        for model in self.models:
            peak_mb = None if model.peak_rss_kb is None else model.peak_rss_kb / 1024
            spread = [_cell(ratio, 2) for ratio in (model.ratio_low, model.ratio_high) if ratio is not None]
            table.add_row(
                Text(Path(model.path).name),
                f"{model.bytes / 1e3:.1f}",
                _cell(peak_mb, 1),
                _cell(model.load_ms, 1),
                *(_cell(value, 3) for value in (model.min_ms, model.p50_ms, model.p90_ms)),
                _cell(model.cpu_wall, 2),
                _cell(model.ratio_to_first, 3),
                "-".join(spread) or "-",
            )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values.

        Returns:
            `{"format": 1, "machine": {...}, "settings": {...}, "models": [{...}], "notes": [...]}`, units in the names.
        """
        return {
            "format": 1,
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "models": [asdict(model) for model in self.models],
            "notes": list(self.notes),
        }

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the latencies; an existing file is replaced only by a complete one. Needs matplotlib.

        Args:
            path: the image to write, as `.png`, `.svg` or `.pdf`.

        Raises:
            BenchError: matplotlib does not write such files, or is not installed.
            OSError: the file cannot be written.
        """
        draw(self.models, f"{self.machine['cpu']}, {self.settings['threads']} thread(s)", path)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
