"""The first thing in a report: the original against the result, in one sentence and one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras_filterprune.report.document import Section, Table
from keras_filterprune.report.measured import median_of, plain
from keras_filterprune.report.prediction import FLOAT32

_UNITS = ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1, ""))


def headline_section(
    cost: Mapping[str, Sequence[float]],
    accuracy: Mapping[str, float] | None,
    benchmark: Any,
    files: Sequence[Mapping[str, Any]],
) -> Section:
    """What was given up and what was gained: the first against the last of what was measured.

    Args:
        cost: {"macs": (before, after), "params": (before, after)}.
        accuracy, benchmark: as in `SavedReport.save`, looked at already.
        files: as `plain_files` gives them.
    """
    row, shares, at = {}, {}, ""
    if accuracy:
        first, last = next(iter(accuracy.values())), [*accuracy.values()][-1]
        row["accuracy"] = f"{100 * first:.1f} → {100 * last:.1f} %"
        at = f", at {_points(100 * (last - first))}"
    shares["multiply-accumulates"] = cost["macs"]
    row["multiply-accumulates"] = _pair(*cost["macs"])
    row["parameters"] = _pair(*cost["params"])
    sizes = [file["bytes"] for file in files] or [FLOAT32 * params for params in cost["params"]]
    shares["bytes"] = sizes[0], sizes[-1]
    row["bytes of the file" if files else "bytes of the weights"] = _pair(sizes[0], sizes[-1])
    if benchmark is not None:
        models = plain(benchmark)["models"]
        key = median_of(models)
        shares["milliseconds"] = models[0][key], models[-1][key]
        row["milliseconds"] = f"{models[0][key]:.3g} → {models[-1][key]:.3g}"
    parts = [f"{100 * after / before:.0f} % of the {what}" for what, (before, after) in shares.items() if before]
    text = f"{' and '.join(filter(None, [', '.join(parts[:-1]), *parts[-1:]]))} of the original{at}." if parts else ""
    return Section("In short", tuple(filter(None, [text])), Table(tuple(row), (tuple(row.values()),)))


def _pair(before: float, after: float) -> str:
    return f"{_short(before)} → {_short(after)}"


def _short(value: float) -> str:
    """Three digits and a unit."""
    factor, unit = next((entry for entry in _UNITS if value >= entry[0]), (1, ""))
    return f"{value / factor:#.3g}".rstrip(".") + unit


def _points(points: float) -> str:
    shown = f"{abs(points):.1f}"
    return "the same accuracy" if shown == "0.0" else f"{shown} points {'less' if points < 0 else 'more'} accuracy"
