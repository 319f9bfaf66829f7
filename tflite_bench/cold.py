"""Load time and peak memory of a file in a fresh process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tflite_bench.fresh import run_fresh


@dataclass(frozen=True)
class Cold:
    """What the first use of a file costs.

    Attributes:
        load_ms: time in ms to open the file and prepare it. The file itself may be in the system's cache.
        peak_rss_kb: peak memory of the process in kB (1024 bytes) after loading and two runs, less what it held when
            LiteRT was imported; None where the system does not tell.
    """

    load_ms: float
    peak_rss_kb: int | None


def measure_cold(path: Path, threads: int, runtime: str) -> Cold:
    """Measure a file in a fresh process.

    Args:
        path: a `.tflite` file.
        threads: threads LiteRT computes with.
        runtime: "interpreter" or "compiled"; what all compiled models share is made before.

    Returns:
        The measurements.

    Raises:
        BenchError: the process failed.
    """
    return Cold(**run_fresh("child_cold", path, threads, runtime))
