"""Each thread on a core of its own, where the system lets a program choose."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_SAMPLE_S = 0.2


def task_ids() -> set[int]:
    """Ids of the threads of this process; none where the system does not list them."""
    tasks = Path("/proc/self/task")
    return {int(task.name) for task in tasks.iterdir()} if tasks.is_dir() else set()


def choose_cores(threads: int) -> tuple[list[int], str | None]:
    """Choose a core for each thread: of different physical cores if there are enough, the idlest first.

    Args:
        threads: number of threads.

    Returns:
        The cores' numbers, none of them if threads cannot be pinned; and what is to be said about it, or None.
    """
    if not hasattr(os, "sched_setaffinity") or not task_ids():
        return [], "threads are not pinned to cores: this system does not offer it"
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < threads:
        return [], f"threads are not pinned to cores: {threads} threads, {len(allowed)} core(s) for this process"
    before = _idle_ticks()
    time.sleep(_SAMPLE_S)
    after = _idle_ticks()
    allowed.sort(key=lambda core: before.get(core, 0) - after.get(core, 0))
    first_of_each = list({_physical(core): core for core in reversed(allowed)}.values())[::-1]
    if len(first_of_each) >= threads:
        return first_of_each[:threads], None
    return allowed[:threads], f"threads share physical cores: {threads} threads, {len(first_of_each)} physical core(s)"


@contextmanager
def pinned(cores: Sequence[int], pools: Sequence[Sequence[int]]) -> Iterator[None]:
    """Pin this thread and worker threads; this thread is released at the end.

    Args:
        cores: one core per thread, this thread's first; nothing is pinned if there are none.
        pools: ids of the worker threads of each model; the workers of one model get the other cores in turn.
    """
    if not cores:
        yield
        return
    allowed = os.sched_getaffinity(0)
    for workers in pools:
        for index, worker in enumerate(workers):
            os.sched_setaffinity(worker, {cores[1:][index % (len(cores) - 1)]} if len(cores) > 1 else {cores[0]})
    os.sched_setaffinity(0, {cores[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _idle_ticks() -> dict[int, int]:
    ticks = {}
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            ticks[int(name[3:])] = int(fields[3]) + int(fields[4])
    return ticks


def _physical(core: int) -> tuple[str, ...]:
    topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    if not topology.is_dir():
        return (str(core),)
    return tuple(Path(topology, name).read_text().strip() for name in ("physical_package_id", "core_id"))
