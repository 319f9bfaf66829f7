"""This computer, and how busy it is."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine_info() -> dict[str, Any]:
    """Describe this computer and how busy it is.

    Returns:
        cpu, cores, load_average_1min (None where the system has none), system, python and litert versions (None
        where LiteRT is not installed).
    """
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "litert": _litert_version(),
    }


def _litert_version() -> str | None:
    try:
        return version("ai-edge-litert")
    except PackageNotFoundError:
        return None


class LoadWatch:
    """How busy this computer was, from the making of this object to the question."""

    def __init__(self):
        self._machine, self._ticks = machine_info(), _cpu_ticks()

    def machine(self) -> dict[str, Any]:
        """Describe this computer and how busy it was.

        Returns:
            `machine_info` of the beginning, load_average_1min_end, and steal_percent: the part of the cores' time
            that a virtual machine's host withheld (None where the system does not count it).
        """
        ticks = _cpu_ticks()
        if ticks is None or self._ticks is None:
            steal_percent = None
        else:
            stolen, passed = (end - start for start, end in zip(self._ticks, ticks, strict=True))
            steal_percent = 100 * stolen / max(passed, 1)
        load = machine_info()["load_average_1min"]
        return self._machine | {"load_average_1min_end": load, "steal_percent": steal_percent}


def _cpu_ticks() -> tuple[int, int] | None:
    # Withheld, and all; summed over the cores.
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    fields = [int(field) for field in stat.read_text(encoding="ascii").splitlines()[0].split()[1:]]
    # The last two, time for guests, are counted in the first two already.
    return fields[7], sum(fields[:8])


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
