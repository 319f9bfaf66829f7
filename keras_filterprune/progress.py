"""How far long work has come, with an estimate, on stderr."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TypeVar

from tflite_bench.progress import progress_bar

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None, enabled: bool = True) -> Generator[T, None, None]:
    """Yield the items and show how many are done; see `tflite_bench.progress.progress_bar`.

    Args:
        items: what to go through.
        description: what is being done, in the present tense.
        total: number of items, None if unknown.
        enabled: show it (True).
    """
    with progress_bar(total, enabled, description) as advance:
        for item in items:
            yield item
            advance(description)
