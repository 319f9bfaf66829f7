"""Times inside LiteRT, taken in a process of its own for `tflite_bench.profiling`."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np

from tflite_bench.errors import BenchError
from tflite_bench.litert_c import Library, Model
from tflite_bench.pinning import choose_cores, pinned, task_ids

# Kinds of events: an operator that LiteRT runs itself, and one inside XNNPACK.
_OWN, _DELEGATED = 2, 8
_KINDS = {1 << bit for bit in range(9)}
_WARM_UP = 5


class _Event(ctypes.Structure):
    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6),
        ("metadata", ctypes.c_uint64 * 2),
        ("source", ctypes.c_int),
    )


class _Profiler:
    def __init__(self, library: Library, path: str, options: dict[bytes, bytes]):
        self._library = library
        self._model = Model(library, path, options | {b"runtime_options_string": b"enable_profiling = true\n"})
        self._handle = library.get("CompiledModelGetProfiler", self._model.compiled)

    def run(self) -> list[tuple[str, bool, int]]:
        """Compute the outputs once: name, delegated or not, and microseconds of each operator."""
        for step in ("ResetProfiler", "StartProfiler"):
            self._library.call(step, self._handle)
        self._model.run()
        self._library.call("StopProfiler", self._handle)
        count = self._library.get("GetNumProfilerEvents", self._handle, kind=ctypes.c_int).value
        events = (_Event * max(count, 1))()
        self._library.call("GetProfilerEvents", self._handle, count, events)
        if any(event.kind not in _KINDS for event in events):
            raise BenchError("events of unknown kinds came back")
        return [
            (event.tag.decode(), event.kind == _DELEGATED, event.elapsed_us)
            for event in events
            if event.kind in (_OWN, _DELEGATED)
        ]


def measure(path: str, threads: int, runs: int, pin: bool) -> dict[str, Any]:
    """Times of the whole file and of its operators, and the cores that it ran on."""
    options = {b"xnnpack": b'kernel_mode = "delegate"\nnum_threads = %d\n' % threads}
    library, before = Library(), task_ids()
    pools = []
    plain = Model(library, path, options)
    plain.run()
    pools.append(sorted(task_ids() - before))
    before = task_ids()
    profiler = _Profiler(library, path, options)
    operators = [(name, delegated) for name, delegated, _ in profiler.run()]
    pools.append(sorted(task_ids() - before))
    if not operators:
        raise BenchError("no operator was seen")
    cores, note = choose_cores(threads) if pin else ([], None)
    whole_ns, elapsed_us = [], []
    with pinned(cores, pools):
        for _ in range(_WARM_UP + runs):
            start = time.perf_counter_ns()
            plain.run()
            whole_ns.append(time.perf_counter_ns() - start)
            elapsed_us.append([microseconds for *_, microseconds in profiler.run()])
    fastest = np.min(elapsed_us, axis=0)
    return {
        "whole_ms": min(whole_ns) / 1e6,
        "cores": cores or None,
        "note": note,
        # LiteRT cuts off parts of microseconds; the middle is nearest on average.
        "operators": [
            [*known, (int(us) + 0.5) / 1e3 if us else 0.0] for known, us in zip(operators, fastest, strict=True)
        ],
    }
