"""Widths that kernels compute in whole steps: what lies between two steps costs as much as the upper one."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from keras_filterprune.errors import InfeasibleBudgetError, UnknownNameError


def check_count(name: str, value: Any) -> int:
    """`value` as an integer of at least 1; anything else is an `InfeasibleBudgetError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InfeasibleBudgetError(f"{name} is a positive integer. Received: {name}={value!r}.")
    return int(value)


@dataclass(frozen=True)
class Tiles:
    """The counts worth having: multiples of `step`, and `first`, a smaller tile for the narrowest layers.

    Methods take an integer or an int64 array of counts.

    Args:
        step: output channels that are computed together, at least 1.
        first: the one count below a step that costs less than a step, at most half of it (None: there is none).
        inputs: input channels that are computed together (1).

    Raises:
        InfeasibleBudgetError: a count is no positive integer, or first is more than half a step.

    Example:
        >>> from keras_filterprune.cost import Tiles
        >>> tiles = Tiles(32, first=16)
        >>> tiles.ceil(5), tiles.ceil(17), tiles.before(64, 2), tiles.rungs(70)
        (16, 32, 16, [16, 32, 64, 70])
    """

    step: int
    first: int | None = None
    inputs: int = 1

    def __post_init__(self):
        check_count("step", self.step)
        check_count("inputs", self.inputs)
        # Above half a step, some counts would fill fewer tiles in two parts than in one: `count` bounds searches.
        if self.first is not None and 2 * check_count("first", self.first) > self.step:
            raise InfeasibleBudgetError(f"first is at most half of step. Received: {self!r}.")

    def __str__(self) -> str:
        return f"multiples of {self.step}" + (f", or {self.first}" if self.first else "")

    def count(self, n: int | np.ndarray) -> int | np.ndarray:
        """Tiles that n units fill."""
        return -(-n // self.step) + (self.first is not None and n > self.first)

    def ceil(self, n: int | np.ndarray) -> int | np.ndarray:
        """The smallest worthwhile count that is at least n."""
        return self._width(self.count(n))

    def rungs(self, size: int) -> list[int]:
        """The worthwhile counts of `size` units, rising: those up to it, and all of them."""
        widths = self._width(np.arange(1, self.count(size) + 1))
        return [*widths[widths < size].tolist(), size]

    def before(self, n: int | np.ndarray, steps: int | np.ndarray) -> int | np.ndarray:
        """The worthwhile count so many steps below n; below the smallest one, 0 or less."""
        return self._width(self.count(n) - steps)

    def _width(self, count: int | np.ndarray) -> int | np.ndarray:
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


def as_tiles(channel_multiple: int | str) -> Tiles:
    """The tiles of a named target, or multiples of a number."""
    if not isinstance(channel_multiple, str):
        return Tiles(check_count("channel_multiple", channel_multiple))
    if channel_multiple in TARGETS:
        return TARGETS[channel_multiple]
    near = difflib.get_close_matches(channel_multiple, TARGETS, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise UnknownNameError(
        f"unknown target {channel_multiple!r}. channel_multiple is a positive integer or one of "
        f"{', '.join(TARGETS)}.{hint}"
    )
