"""Widths that kernels compute in whole steps: what lies between two steps costs as much as the upper one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from keras_filterprune.checks import check_integer, did_you_mean
from keras_filterprune.errors import UnknownNameError

Counts = TypeVar("Counts", int, np.ndarray)


@dataclass(frozen=True)
class Tiles:
    """The counts worth having: multiples of `step`, and `first`, a smaller tile for the narrowest layers.

    Methods take an integer or an int64 array of counts.

    Args:
        step: output channels that are computed together, at least 1.
        first: the one count below a step that costs less than a step, at most half of it (None: there is none).
        inputs: input channels that are computed together (1).
        narrow: groups of fewer units may keep any count, since a step of theirs is too much to lose at once (0).

    Raises:
        InvalidValueError: a count is no positive integer, or first is more than half a step.

    Example:
        >>> from keras_filterprune.cost import Tiles
        >>> tiles = Tiles(32, first=16)
        >>> tiles.ceil(5), tiles.ceil(17), tiles.before(64, 2), tiles.rungs(70)
        (16, 32, 16, [16, 32, 64, 70])
    """

    step: int
    first: int | None = None
    inputs: int = 1
    narrow: int = 0

    def __post_init__(self):
        check_integer("step", self.step)
        check_integer("inputs", self.inputs)
        check_integer("narrow", self.narrow, least=0)
        # Above half a step, some counts would fill fewer tiles in two parts than in one: `count` bounds searches.
        check_integer("first", self.first, most=self.step // 2, optional=True)

    def __str__(self) -> str:
        wide = f" in groups of {self.narrow} or more" if self.narrow else ""
        return f"multiples of {self.step}" + (f", or {self.first}" if self.first else "") + wide

    def count(self, n: Counts) -> Counts:
        """Tiles that n units fill."""
        return -(-n // self.step) + (self.first is not None and n > self.first)

    def ceil(self, n: Counts) -> Counts:
        """The smallest worthwhile count that is at least n."""
        return self._width(self.count(n))

    def rungs(self, size: int) -> list[int]:
        """The worthwhile counts of `size` units, rising: those up to it, and all of them."""
        if size < self.narrow:
            return list(range(1, size + 1))
        widths = self._width(np.arange(1, self.count(size) + 1))
        return [*widths[widths < size].tolist(), size]

    def before(self, n: Counts, steps: int) -> Counts:
        """The worthwhile count so many steps below n; below the smallest one, 0 or less."""
        return self._width(self.count(n) - steps)

    def _width(self, count: Counts) -> Counts:
        if self.first is None:
            return count * self.step
        return (count - (count > 0)) * self.step + (count == 1) * self.first


# Tiles of XNNPACK, which LiteRT runs on: timed on AVX-512, instructions counted under emulation on Arm (Cortex-A72 and
# A76, float32 and int8), read from its source for arm64-fp16 and arm32, whose input steps are not known.
TARGETS = {
    "arm64": Tiles(8),
    "arm64-int8": Tiles(8, inputs=8),
    "arm64-dotprod-int8": Tiles(16, inputs=4),
    "arm64-fp16": Tiles(16),
    "arm32": Tiles(8),
    "x86-avx512": Tiles(32, first=16),
    "x86-avx512-int8": Tiles(16, inputs=8),
}
# Steps of most phone kernels where a group has at least four of them.
AUTO = Tiles(8, narrow=32)


def as_widths(channel_multiple: int | str | Tiles) -> Tiles:
    """The widths that groups may have: "auto", a named target, multiples of a number, or tiles."""
    if isinstance(channel_multiple, Tiles):
        return channel_multiple
    if isinstance(channel_multiple, str) and channel_multiple == "auto":
        return AUTO
    return as_tiles(channel_multiple)


def as_tiles(channel_multiple: int | str) -> Tiles:
    """The tiles of a named target, or multiples of a number."""
    if not isinstance(channel_multiple, str):
        return Tiles(check_integer("channel_multiple", channel_multiple))
    if channel_multiple in TARGETS:
        return TARGETS[channel_multiple]
    hint = did_you_mean(channel_multiple, TARGETS)
    raise UnknownNameError(f"unknown target {channel_multiple!r}. Known targets: {', '.join(TARGETS)}.{hint}")
