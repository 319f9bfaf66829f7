"""What a benchmark measured: values, table and JSON."""

import json
import os
import platform
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table


@dataclass(frozen=True)
class ModelTiming:
    """Times of one file.

    Args:
        path: The file as it was given.
        bytes: Its size in bytes.
        threads: Threads of the interpreter.
        load_ms: Time in ms to open the file and prepare it, once, in a process that is already warm.
        p50_ms: Median run in ms; None where an old `benchmark_model` gives none.
        p90_ms: 90th percentile in ms; None on a phone.
        min_ms: Fastest run in ms, the figure least disturbed by other programs.
        mean_ms: Mean in ms.
        runs: Number of timed runs.
        cpu_wall: CPU time over wall time; well below `threads` means that threads waited or shared a core. None on a
            phone.
        ratio_to_first: Median over the rounds of this file's median run over the first file's; below 1 is faster.
        ratio_low: Smallest of those per-round ratios.
        ratio_high: Largest of them.
    """

    path: str
    bytes: int
    threads: int
    load_ms: float
    p50_ms: float | None
    p90_ms: float | None
    min_ms: float
    mean_ms: float
    runs: int
    cpu_wall: float | None
    ratio_to_first: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class BenchReport:
    """The result of `benchmark`.

    Args:
        machine: Processor, load average and versions.
        settings: Threads, runs, warm-up runs and rounds.
        models: One entry per file, in the given order.
        notes: What a reader of the figures must know, one sentence each.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    models: tuple[ModelTiming, ...]
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """Lay the timings out for a terminal.

        Returns:
            A `rich` table, one row per file, the notes below it; the mean stands in `to_dict` only.
        """
        title = (
            f"{self.machine['cpu']}, {self.settings['threads']} thread(s), {self.settings['runs']} runs, times in ms"
        )
        caption = "\n".join(f"- {note}" for note in self.notes) or None
        table = Table(title=title, caption=caption, caption_justify="left", box=box.SIMPLE, padding=0, pad_edge=False)
        table.add_column("file", overflow="fold", min_width=13)
        for column in ("kB", "load", "min", "p50", "p90", "cpu / wall", "x first", "range"):
            table.add_column(column, justify="right")
        for model in self.models:
            table.add_row(
                Path(model.path).name,
                f"{model.bytes / 1e3:.1f}",
                *(_cell(value, 3) for value in (model.load_ms, model.min_ms, model.p50_ms, model.p90_ms)),
                _cell(model.cpu_wall, 2),
                f"{model.ratio_to_first:.3f}",
                f"{model.ratio_low:.2f}-{model.ratio_high:.2f}",
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON; an existing file is replaced only by a complete one.

        Args:
            path: The file to write.

        Raises:
            OSError: The file cannot be written.
        """
        write_json(path, self.to_dict())


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def write_json(path: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Write values as JSON; an existing file is replaced only by a complete one.

    Args:
        path: The file to write.
        values: JSON-ready values.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder, path.name)
        draft.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, path)


def machine_info() -> dict[str, Any]:
    """Describe this computer and how busy it is.

    Returns:
        cpu, cores, load_average_1min (None where the system has none), system, litert and python versions.
    """
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "litert": version("ai-edge-litert"),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
