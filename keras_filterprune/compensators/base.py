"""What a compensator is: it makes the surviving weights do some of the work of the removed ones."""

from __future__ import annotations

import abc
from typing import Any

from keras_filterprune.handlers.base import Rebuilt


class Compensator(abc.ABC):
    """Adjusts the weights of a freshly pruned model.

    Attributes:
        requires: what it needs, any of {"activations"}.
    """

    requires: frozenset[str] = frozenset()

    @abc.abstractmethod
    def apply(self, rebuilt: Rebuilt, data: Any, progress: bool = True) -> str:
        """Change the weights of the pruned model in place; returns what was done, in one sentence."""
