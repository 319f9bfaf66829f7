"""Measured times of single operators: what to measure, and how to read times between the measured ones."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from keras_filterprune.checks import shown
from keras_filterprune.cost.tiles import Tiles
from keras_filterprune.errors import FileError, InfeasibleBudgetError
from keras_filterprune.files import json_digest, read_json, unsealed, write_json
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.latency.operators import DEFAULTS, PRODUCTS, STEPPED, list_operators
from keras_filterprune.latency.prices import Fields, Prices

# Output widths are measured in steps of 8 up to 64, and 16 more up to the full one.
MEASURED, _DENSE, _COARSE = 8, 64, 16
# A width costs as much as the end of its tile if it takes at least this share of the time.
_SAME = 0.93
# Input channels of int8 kernels (x86-avx512-int8 and arm64-int8; 4 with dot products).
_INT8_INPUTS = 8
_CANDIDATES = (Tiles(32), Tiles(32, first=16), Tiles(16), Tiles(16, first=8), Tiles(8))
_FORMAT = 1
_DATA_TYPES = ("float32", "int8")
_FIELDS = {"format", "unit", "machine", "settings", "call_floor_us", "call_floor_kilo_instructions", "operators"}
# Unit of operators in a report: `Prices.units`.
_UNITS = {
    "us": ("ns", "µs", "ms"),
    "kilo_instructions": ("instructions", "thousand instructions", "million instructions"),
}

# An operator without its widths: its other fields, sorted.
Signature = tuple[tuple[str, Any], ...]


def operators_to_measure(graph: ChannelGraph, data_type: str = "float32") -> list[dict[str, Any]]:
    """What a `LatencyTable` for a model and everything that can be pruned from it has to hold.

    Args:
        graph: the channel graph.
        data_type: "float32" or "int8".

    Returns:
        Arguments of `tflite_bench.Operator`, one dict per operator and pair of widths: output widths in steps of 8, at
        most 24 for each operator, and four input widths, between which times are interpolated.
    """
    operators, widths, _ = list_operators(graph)
    fixed, slope = widths.affine()
    full = (fixed + slope @ graph.sizes).tolist()
    shrinks = np.diff(slope.indptr) > 0
    found: dict[Signature, set[tuple[int, int]]] = defaultdict(set)
    for operator in operators:
        if dict(operator.fields).get("folds") == data_type:
            continue
        c, f = operator.channels, operator.filters
        steps = [_steps(full[n]) if shrinks[n] else {full[n]} for n in (c, f)]
        kind = dict(operator.fields)["kind"]
        if kind in PRODUCTS or kind == "CONCATENATION":
            quarters = _quarters(full[c]) if shrinks[c] else {full[c]}
            pairs = {(a, b) for a in quarters for b in steps[1]}
        else:
            pairs = {(a, a * full[f] // full[c]) for a in steps[0]}
        fields = dict(operator.fields)
        found[_signature(operator.fields, data_type)] |= {pair for pair in pairs if _exists(fields, *pair)}
    return [dict(s) | {"channels": a, "filters": b} for s, pairs in found.items() for a, b in sorted(pairs)]


def _steps(full: int) -> set[int]:
    spacing = MEASURED * math.ceil(full / MEASURED / _COARSE)
    return {full, *range(MEASURED, min(full, _DENSE) + 1, MEASURED), *range(spacing, full, spacing)}


def _quarters(full: int) -> set[int]:
    return {min(full, MEASURED * math.ceil(full * quarter / 4 / MEASURED)) for quarter in (1, 2, 3, 4)}


def _exists(fields: Mapping[str, Any], channels: int, filters: int) -> bool:
    """Whether there is such an operator: groups divide, a concatenation adds something."""
    groups = fields.get("groups", 1)
    joined = fields["kind"] != "CONCATENATION" or filters > channels
    return joined and channels % groups == 0 and filters % groups == 0


def _signature(fields: Fields, data_type: str) -> Signature:
    kept = {name: tuple(v) if isinstance(v, list) else v for name, v in dict(fields).items()}
    # A fused activation is free: kernels clamp anyway. What is fused where changes when blocks are removed.
    free = ("activation", "folds")
    kept = {name: v for name, v in kept.items() if v not in (None, DEFAULTS.get(name)) and name not in free}
    return tuple(sorted((kept | {"data_type": data_type}).items()))


def _checked(name: str, value: Any, kind: Any, least: int) -> Any:
    """`value`, a finite number of at least `least`; NaN is none."""
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < math.inf:
        raise ValueError(f"{name}={value!r}")
    return value


class _Surface:
    """Times of one operator over its widths: steps in the output of matrix products, straight lines elsewhere."""

    def __init__(self, kind: str, data_type: str, points: Mapping[tuple[int, int], float]):
        self._stepped, self._product = kind in STEPPED, kind in PRODUCTS
        # Integer kernels multiply several input channels at once.
        self._inputs = _INT8_INPUTS if self._product and data_type == "int8" else 1
        self._most = max(channels for channels, _ in points)
        self._rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.columns = {f: _rising((c, t) for (c, g), t in points.items() if g == f) for f in {f for _, f in points}}

    def row(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Output widths that were measured up to an input width, and the times there."""
        if channels not in self._rows:
            widths = sorted(f for f, column in self.columns.items() if column[-1][0] >= channels or not self._product)
            times = [_along(self.columns[f], channels) for f in widths]
            self._rows[channels] = np.array(widths, int), np.array(times, float)
        return self._rows[channels]

    def at_the_widest(self) -> list[dict[int, float]]:
        """{output width: time} at the widest input of all, and at the widest that the widest output was measured at."""
        ends = {f: column[-1][0] for f, column in self.columns.items()}
        rows = [self.row(channels) for channels in {max(ends.values()), ends[max(ends)]}]
        return [dict(zip(widths.tolist(), times.tolist(), strict=True)) for widths, times in rows]

    def __call__(self, channels: int, filters: int, tiles: Tiles) -> float | None:
        if channels <= self._most:
            channels = min(-(-channels // self._inputs) * self._inputs, self._most)
        widths, times = self.row(channels)
        if not len(widths) or filters > widths[-1]:
            return None
        if self._stepped:
            # What is measured within a tile counts: with AVX-512, 24 float32 filters take longer than 32.
            filters = min(widths[np.searchsorted(widths, filters)], tiles.ceil(filters))
        return float(np.interp(filters, widths, times))


def _rising(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """(width, time) in order; noise must not make a wider layer the faster one."""
    widths, times = zip(*sorted(points), strict=True)
    return list(zip(widths, isotonic_regression(times).x.tolist(), strict=True))


def _along(column: list[tuple[int, float]], channels: int) -> float:
    """Time between measured input widths; below the first one as the line goes on, but not below their proportion."""
    (first, time), second = column[0], column[1:2]
    if channels < first and second:
        slope = (second[0][1] - time) / (second[0][0] - first)
        return max(time - slope * (first - channels), time * channels / first)
    return float(np.interp(channels, [width for width, _ in column], [time for _, time in column]))


def _fits(tiles: Tiles, rows: list[dict[int, float]]) -> bool:
    """Whether widths take as long as the end of their tile."""
    ends = [(row, f, tiles.ceil(f)) for row in rows for f in row if f <= _DENSE]
    ratios = [row[f] / row[end] for row, f, end in ends if row.get(end, 0) > 0]
    return bool(ratios) and bool(np.quantile(ratios, 0.1) >= _SAME)


class LatencyTable(Prices):
    """Measured times of operators on one device, as `tflite_bench.time_operators` reports them.

    Or their instructions on an emulated core, by `tflite_bench.arm.count_operators`; they then take the place of times
    everywhere.

    Args:
        content: `OperatorReport.to_dict()`, or what `OperatorReport.save` wrote.

    Attributes:
        device: name of the processor; "emulated cortex-a76" if it is one.
        unit: of whole models, "ms" or "million instructions".
        threads: of the interpreter.
        data_type: "float32" or "int8".

    Raises:
        FileError: this is no such report, or it mixes data types.

    Example:
        >>> import keras_filterprune as kfp
        >>> operator = {"kind": "CONV_2D", "channels": 8, "filters": 8, "data_type": "float32", "us": 9.0}
        >>> machine, settings = {"cpu": "Cortex-A76"}, {"threads": 1}
        >>> content = {"format": 1, "machine": machine, "settings": settings, "call_floor_us": 0.5}
        >>> kfp.LatencyTable(content | {"operators": [operator]}).device
        'Cortex-A76'
    """

    measured = True

    def __init__(self, content: dict[str, Any]):
        try:
            content = unsealed(content)
            # Else a digest whose name is damaged would not be missed.
            if unknown := content.keys() - _FIELDS:
                raise ValueError(f"tables have no {', '.join(sorted(unknown))}")
            self.device = str(content["machine"]["cpu"])
            self.threads = _checked("threads", content["settings"]["threads"], Integral, 1)
            own_unit = content.get("unit", "us")
            self.units = _UNITS[own_unit]
            floor = f"call_floor_{own_unit}"
            self.floor = _checked(floor, content[floor], Real, 0)
            points: dict[Signature, dict[tuple[int, int], float]] = defaultdict(dict)
            for entry in content["operators"]:
                fields = dict(entry)
                widths = tuple(_checked(name, fields.pop(name), Integral, 1) for name in ("channels", "filters"))
                time = _checked(own_unit, fields.pop(own_unit), Real, 0)
                fields.pop("p50_us", None)
                signature = _signature(fields.items(), fields.pop("data_type"))
                points[signature][widths] = max(time - self.floor, 0.0)
            self._surfaces = {s: _Surface(dict(s)["kind"], dict(s)["data_type"], found) for s, found in points.items()}
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FileError(
                f"expected the JSON of tflite_bench.time_operators, and {error!r} stands in the way. Time the "
                f"operators again. Received: content={shown(content)}."
            ) from error
        types = sorted({str(dict(signature)["data_type"]) for signature in points})
        if len(types) != 1 or types[0] not in _DATA_TYPES or content.get("format") != _FORMAT:
            raise FileError(
                f"a latency table is of format {_FORMAT} and holds one data type, float32 or int8. Received: format="
                f"{content.get('format')!r}, data types {types}."
            )
        self.data_type = types[0]
        self._content = content
        self._known_tiles: dict[str, Tiles] = {}
        self.tiles = self._tiles("CONV_2D")

    def __repr__(self) -> str:
        what = f"{self.data_type}, {self.threads} thread(s), {len(self._surfaces)} operators"
        return f"LatencyTable({self.device!r}, {what})"

    @classmethod
    def load(cls, path: str | os.PathLike) -> LatencyTable:
        """Read a table.

        Raises:
            FileError: there is no such file, or it is damaged, was changed after it had been written, or holds
                something else.
        """
        return cls(read_json(path, "a latency table"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return json_digest(self._content)

    @property
    def key(self) -> str:
        return self.digest

    @property
    def source(self) -> str:
        what = f"{self.data_type} on {self.device}, {self.threads} thread(s)"
        return f"a table of measured operators: {what}; {self.floor:.2f} {self.units[1]} are for the call"

    def _tiles(self, kind: str) -> Tiles:
        """The coarsest tiles within which nothing is saved, read off the times of one kind of operator."""
        if kind not in self._known_tiles:
            surfaces = (surface for s, surface in self._surfaces.items() if dict(s)["kind"] == kind)
            rows = [row for surface in surfaces for row in surface.at_the_widest()]
            fitting = (tiles for tiles in _CANDIDATES if _fits(tiles, rows))
            self._known_tiles[kind] = next(fitting, Tiles(1))
        return self._known_tiles[kind]

    def price(self, fields: Fields, channels: int, filters: int) -> float:
        """Time of one operator in a model, in microseconds (or thousands of instructions), without the cost of a call.

        Raises:
            InfeasibleBudgetError: the table says nothing about it.
        """
        if dict(fields).get("folds") == self.data_type:
            return 0.0
        signature = _signature(fields, self.data_type)
        surface = self._surfaces.get(signature)
        found = None if surface is None else surface(channels, filters, self._tiles(dict(signature)["kind"]))
        if found is None:
            what = ", ".join(f"{name}={value}" for name, value in signature)
            raise InfeasibleBudgetError(
                f"{self!r} has no time for an operator with {what}, {channels} to {filters} channels. Measure the "
                "model that is pruned: measure_latency(model)."
            )
        return found

    def save(self, path: str | os.PathLike) -> None:
        """Write the table as JSON, in one step."""
        write_json(path, self._content)
