"""Load time and peak memory of a file in a fresh process."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tflite_bench.fresh import answer, run_fresh
from tflite_bench.runner import random_inputs
from tflite_bench.runtimes import litert_environment, litert_module, load_runtime


@dataclass(frozen=True)
class Cold:
    """What the first use of a file costs.

    Args:
        load_ms: Time in ms to open the file and prepare it. The file itself may be in the system's cache.
        peak_rss_kb: Peak memory of the process in kB (1024 bytes) after loading and two runs, less what it held when
            LiteRT was imported; None where the system does not tell.
    """

    load_ms: float
    peak_rss_kb: int | None


def measure_cold(path: Path, threads: int, runtime: str) -> Cold:
    """Measure a file in a fresh process.

    Args:
        path: A `.tflite` file.
        threads: Threads LiteRT computes with.
        runtime: "interpreter" or "compiled"; what all compiled models share is made before.

    Returns:
        The measurements.

    Raises:
        BenchError: The process failed.
    """
    return Cold(**run_fresh("cold", path, threads, runtime))


def _measure(arguments: Sequence[str]) -> dict[str, Any]:
    path, threads, runtime = arguments
    if runtime == "compiled":
        litert_environment()
    else:
        litert_module("interpreter")
    held = _peak_kb()
    start = time.perf_counter()
    model = load_runtime(runtime, path, int(threads))
    load_ms = (time.perf_counter() - start) * 1e3
    for index, values in enumerate(random_inputs(Path(path), model.inputs())):
        model.fill(index, values)
    for _ in range(2):
        model.run()
    return {"load_ms": load_ms, "peak_rss_kb": None if held is None else _peak_kb() - held}


def _peak_kb() -> int | None:
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: on Linux a child begins with its parent's.
        (line,) = (line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1])
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return None


if __name__ == "__main__":
    answer(_measure)
