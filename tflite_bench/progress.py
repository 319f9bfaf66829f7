"""How far work has come, on stderr: a bar for people, a line a minute for log files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tflite_bench.quiet import say

# In seconds.
_FRAME, _LINE = 0.1, 60.0
# Only one can be shown at a time: work inside of such work is silent.
_shown = False


@contextmanager
def progress_bar(total: int | None, shown: bool, description: str = "timing") -> Iterator[Callable[[str], None]]:
    """Show progress: in a terminal or notebook a bar that is gone at the end, elsewhere a line a minute.

    Args:
        total: number of steps, None if unknown.
        shown: False: nothing is shown.
        description: what is being done.

    Yields:
        What to call after each step, with what was done.
    """
    global _shown
    if not shown or _shown:
        yield lambda done: None
        return
    _shown, console = True, Console(stderr=True)
    try:
        if console.is_terminal or console.is_jupyter:
            with _bar(console, total, description) as advance:
                yield advance
        else:
            yield _Lines(total)
    finally:
        _shown = False


@contextmanager
def _bar(console: Console, total: int | None, description: str) -> Iterator[Callable[[str], None]]:
    # Names may hold brackets.
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # No refresh thread: it would take CPU time from what is timed.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task, drawn = bar.add_task(description, total=total), 0.0

        def advance(done: str) -> None:
            nonlocal drawn
            now = time.monotonic()
            due = now - drawn >= _FRAME
            drawn = now if due else drawn
            bar.update(task, advance=1, description=done, refresh=due)

        bar.refresh()
        yield advance


class _Lines:
    """A line a minute, with an estimate of what is left."""

    def __init__(self, total: int | None):
        self._total, self._count = total, 0
        self._start = self._last = time.monotonic()

    def __call__(self, done: str) -> None:
        self._count += 1
        now = time.monotonic()
        if now - self._last < _LINE:
            return
        self._last = now
        far = f"{self._count}"
        if self._total is not None:
            minutes = (now - self._start) * (self._total / self._count - 1) / 60
            far += f" of {self._total}, about {max(1, round(minutes))} min left"
        say(f"{done}: {far}\n")
