"""Results that say in words what they are."""

from __future__ import annotations

import abc
from typing import Any


class Summarised(abc.ABC):
    """What `print` and the last line of a notebook's cell show as its summary, not as the fields that it is made of."""

    @abc.abstractmethod
    def summary(self) -> str:
        """The words."""

    def __str__(self) -> str:
        return self.summary()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython calls."""
        printer.text(self.summary())


def change_of(before: int, after: int, unit: str = "") -> str:
    """A count before and after, and how much of it is left."""
    left = f"{100 * after / before:.1f} %" if before else "nothing"
    return f"{before:,} -> {after:,}{' ' * bool(unit)}{unit} ({left})"
