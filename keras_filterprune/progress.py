"""Progress bars with an estimate, on stderr, for people only: nothing is drawn into a log file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
# Only one bar can be drawn at a time: work inside tracked work is silent.
_drawn = False


def track(items: Iterable[T], description: str, total: int | None, enabled: bool = True) -> Iterator[T]:
    """Yield the items under a progress bar that disappears when they are done.

    Args:
        items: what to go through.
        description: what is being done, in the present tense.
        total: number of items, None if unknown.
        enabled: draw the bar, if stderr is a terminal or a notebook.
    """
    global _drawn
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    shown = enabled and not _drawn and (console.is_terminal or console.is_jupyter)
    _drawn = _drawn or shown
    try:
        with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
            yield from bar.track(items, total=total, description=description)
    finally:
        _drawn = _drawn and not shown
