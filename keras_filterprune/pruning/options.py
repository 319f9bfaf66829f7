"""Which groups may shrink, and how far."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from keras_filterprune.checks import check_integer, check_names, did_you_mean
from keras_filterprune.cost import Tiles, as_widths
from keras_filterprune.errors import UnknownNameError
from keras_filterprune.graph.types import ChannelGraph


class Options:
    """Checked options that decide which groups may shrink, and how far; arguments as in `prune_model`."""

    def __init__(self, include: Any, exclude: Any, min_filters: int, channel_multiple: int | str | Tiles):
        self.include = None if include is None else check_names("include", include)
        self.exclude = () if exclude is None else check_names("exclude", exclude)
        self.min_filters, self.tiles = check_integer("min_filters", min_filters), as_widths(channel_multiple)

    def refusals(self, graph: ChannelGraph) -> dict[str, str]:
        """{group: why it stays whole}."""
        found = {group.name: self.refusal(group.producers) for group in graph.groups}
        return {name: why for name, why in found.items() if why is not None}

    def check_names(self, graph: ChannelGraph) -> None:
        """Raise `UnknownNameError` for a pattern that matches no layer."""
        layers = [call.path for call in graph.view.calls]
        for pattern in (*(self.include or ()), *self.exclude):
            if not fnmatch.filter(layers, pattern):
                hint = did_you_mean(pattern, layers, " analyze(model).groups lists the layers.")
                raise UnknownNameError(f"no layer matches {pattern!r}.{hint}")

    def refusal(self, names: Sequence[str]) -> str | None:
        """Why the filters of these layers stay whole, None if they do not."""
        hit = next((p for p in self.exclude if fnmatch.filter(names, p)), None)
        if hit is not None:
            return f"is excluded by '{hit}'"
        included = self.include is None or any(fnmatch.filter(names, p) for p in self.include)
        return None if included else "is not included"

    def only(self, names: Iterable[str]) -> Options:
        """These options for these layers alone."""
        same = copy.copy(self)
        same.include, same.exclude = tuple(names), ()
        return same
