"""Load time and peak memory of a file, measured in a process of its own for `tflite_bench.cold`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from tflite_bench.runner import random_inputs
from tflite_bench.runtimes import litert_environment, litert_module, load_runtime


def measure(path: str, threads: int, runtime: str) -> dict[str, Any]:
    """The fields of a `Cold`."""
    if runtime == "compiled":
        litert_environment()
    else:
        litert_module("interpreter")
    held = _peak_kb()
    start = time.perf_counter()
    model = load_runtime(runtime, path, threads)
    load_ms = (time.perf_counter() - start) * 1e3
    for index, values in enumerate(random_inputs(Path(path), model.inputs())):
        model.fill(index, values)
    for _ in range(2):
        model.run()
    now = _peak_kb()
    return {"load_ms": load_ms, "peak_rss_kb": None if held is None or now is None else now - held}


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
