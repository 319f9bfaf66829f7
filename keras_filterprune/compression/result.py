"""What `compress` made: files, figures before and after, and why they are as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from keras_filterprune.summarised import Summarised

# How figures are shown.
_SHOWN = {
    "macs": ("multiply-accumulates", "{:,.0f}"),
    "params": ("parameters", "{:,.0f}"),
    "bytes": ("bytes of the .tflite file", "{:,.0f}"),
    "accuracy": ("accuracy", None),
    "ms": ("milliseconds here, one thread", "{:.3g}"),
    "instructions": ("instructions of one inference, emulated", "{:,.0f}"),
}
FILES = {
    "model": "model.keras",
    "original": "original.tflite",
    "tflite": "model.tflite",
    "plan": "plan.json",
    "report": "report.html",
    "card": "model_card.md",
}


def percent(share: float) -> str:
    """A share of 1 in words."""
    return f"{100 * share:.1f} %"


@dataclass(frozen=True, eq=False)
class Compressed(Summarised):
    """What `compress` made.

    Attributes:
        folder: where it all is.
        target: name of the device.
        quantize: the numbers of the `.tflite` file, as in `export_tflite`.
        figures: {"macs", "params", "bytes", "accuracy", "ms", "instructions": (before, after)}, those that are known.
        notes: why the file is as it is, and what to do next, in sentences.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> layers = [keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(3)]
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
        >>> x = np.random.default_rng(0).normal(size=(64, 8, 8, 3))
        >>> made = kfp.compress(model, x, "cortex-m", out="small", progress=False)
        >>> made.tflite.name, made.figures["macs"][1] <= made.figures["macs"][0] / 2
        ('model.tflite', True)
    """

    folder: Path
    target: str
    quantize: str
    figures: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...]

    @property
    def model(self) -> Path:
        """The smaller network, an ordinary `.keras` file."""
        return self.folder / FILES["model"]

    @property
    def tflite(self) -> Path:
        """The file for the device."""
        return self.folder / FILES["tflite"]

    @property
    def plan(self) -> Path:
        """Which filters stayed, for `PruningPlan.load`."""
        return self.folder / FILES["plan"]

    @property
    def report(self) -> Path:
        """What was done, as one HTML page."""
        return self.folder / FILES["report"]

    @property
    def card(self) -> Path:
        """What a user of the file needs to know, as Markdown."""
        return self.folder / FILES["card"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self) | {"folder": os.fspath(self.folder), "figures": dict(self.figures)}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """What is measured, before, after, and the share that is left, in words."""
        found = []
        for key, (name, pattern) in _SHOWN.items():
            if key in self.figures:
                before, after = self.figures[key]
                if pattern is None:
                    found.append((name, percent(before), percent(after), ""))
                else:
                    left = f"{100 * after / before:.0f} %" if before else ""
                    found.append((name, pattern.format(before), pattern.format(after), left))
        return found

    def table(self) -> Table:
        """The figures for a terminal."""
        table = Table(title=f"{self.tflite} for {self.target}")
        table.add_column("")
        for name in ("original", "now", "left"):
            table.add_column(name, justify="right")
        for row in self.rows():
            table.add_row(*row)
        return table

    def summary(self) -> str:
        """The figures, and the notes, a line each."""
        lines = [f"{name}: {before} -> {after}{f' ({left})' * bool(left)}" for name, before, after, left in self.rows()]
        return "\n".join([f"{self.tflite} for {self.target}: {self.quantize}", *lines, *self.notes])
