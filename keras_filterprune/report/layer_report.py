"""What one run of layer pruning did: as a value, as JSON, as a table, and section by section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import rich.table

from keras_filterprune.checks import visible
from keras_filterprune.latency import Prices, SizedOperators
from keras_filterprune.report.base import SavedReport
from keras_filterprune.report.document import Bar, Section, Table, count, number, share
from keras_filterprune.report.prediction import COST_COLUMNS, cost_rows, predict
from keras_filterprune.terminal import cell

_NAMES = 6


@dataclass(frozen=True)
class UnitRow:
    """One removable unit.

    Attributes:
        name: of the sum that ends it, or of the convolution.
        kind: "block", "branch" (next to a projection) or "convolution".
        layers: what it consists of.
        importance: by the criterion, higher = keep.
        cost: what it costs, in the report's unit.
        removed: whether it went.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    importance: float
    cost: float
    removed: bool


@dataclass(frozen=True)
class LayerReport(SavedReport):
    """What was removed, what could have been, and what could not and why.

    Attributes:
        model: its name.
        criterion: what scored the units, as text.
        units: one `UnitRow` per removable unit, in the order of the model.
        unremovable: {layer: why it is in no unit} of every layer that multiplies.
        cost: {"macs": (before, after), "params": (before, after)}, and the budget's own unit if that is another.
        unit: of `UnitRow.cost`.
        verification: largest relative difference to the original without the units, None when `verify=False`.
        notes: everything else worth knowing.
        kept: {layer: indices of its own output channels that stay}, as in `PruningPlan.kept`: all of them, or none.
        operators: of the LiteRT files before and after, for predictions (None: not known).
        prices: those behind the budget, None where there are none.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> x = inputs = keras.Input((8, 8, 4))
        >>> for name in ("one", "two"):
        ...     x = keras.layers.Add(name=f"sum_{name}")([x, keras.layers.Conv2D(4, 3, padding="same", name=name)(x)])
        ...
        >>> model = keras.Model(inputs, keras.layers.Flatten()(x))
        >>> report = kfp.prune_layers(model, n_layers=1, return_report=True)[1]
        >>> len(report.removed), [row.layers[0] for row in report.units]
        (1, ['one', 'two'])
    """

    model: str
    criterion: str
    units: tuple[UnitRow, ...]
    unremovable: dict[str, str]
    cost: dict[str, tuple[float, float]]
    unit: str
    verification: float | None
    notes: list[str] = field(default_factory=list)
    kept: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    operators: tuple[SizedOperators, SizedOperators] | None = field(default=None, repr=False, compare=False)
    prices: Prices | None = field(default=None, compare=False)

    @property
    def removed(self) -> list[str]:
        """Names of the units that went."""
        return [row.name for row in self.units if row.removed]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        content = asdict(replace(self, operators=None, prices=None, kept={}))
        return {name: value for name, value in content.items() if name not in ("operators", "prices", "kept")}

    def summary(self) -> str:
        """What went, cost before and after, proof, notes."""
        proof = "not verified" if self.verification is None else f"verified to {self.verification:.1e} relative"
        costs = ", ".join(f"{kind} {before:,} -> {after:,}" for kind, (before, after) in self.cost.items())
        gone = ", ".join(self.removed) or "nothing"
        lines = [f"{len(self.removed)} of {len(self.units)} units removed: {gone}", f"{costs}; {proof}"]
        return visible("\n".join(lines + self.notes))

    def table(self) -> rich.table.Table:
        """Importance and cost of every unit, the least important first."""
        table = rich.table.Table(title=cell(f"{self.model}: {self.criterion}", "table.title"))
        table.add_column("unit", overflow="fold")
        table.add_column("kind")
        for name in ("layers", "importance", self.unit, ""):
            table.add_column(name, justify="right")
        for row in sorted(self.units, key=lambda row: row.importance):
            gone = "removed" if row.removed else ""
            cells = (str(len(row.layers)), f"{row.importance:.4g}", f"{row.cost:,}", gone)
            table.add_row(cell(row.name), cell(row.kind), *cells)
        return table

    @property
    def _title(self) -> str:
        return f"{self.model}, layers removed by {self.criterion}"

    @property
    def _costs(self) -> Mapping[str, Sequence[float]]:
        return self.cost

    def _sections(self, prices: Prices | None) -> list[Section]:
        return _layer_sections(self, prices)

    def _closing(self) -> list[Section]:
        return _layer_closing(self)


def _layer_sections(report: LayerReport, prices: Prices | None) -> list[Section]:
    """Cost, units, and layers that are in none."""
    prediction = predict(report.operators, prices)
    rows = cost_rows(report.cost["macs"], report.cost["params"], prediction)
    others = {unit: pair for unit, pair in report.cost.items() if unit not in ("macs", "params")}
    rows += [(unit, count(before), count(after), share(after, before)) for unit, (before, after) in others.items()]
    gone = ", ".join(report.removed) or "nothing"
    text = (
        f"{len(report.removed)} of {len(report.units)} units removed: {gone}.",
        *(prediction.notes if prediction else ()),
    )
    sections = [Section("At a glance", text, Table(COST_COLUMNS, tuple(rows))), _units(report)]
    if report.unremovable:
        table = Table(("layer", "because it"), tuple(report.unremovable.items()))
        sections.append(Section("Layers that could not be removed, and why", (), table))
    return sections


def _layer_closing(report: LayerReport) -> list[Section]:
    """Proof, notes, and how the run was made."""
    proof = (
        "The surgery was not verified."
        if report.verification is None
        else f"The surgery is verified to {report.verification:.1e} relative, against the original without the units."
    )
    made = (("model", report.model), ("criterion", report.criterion))
    return [
        Section("Proof and notes", (proof, *report.notes)),
        Section("How it was made", (), Table(("part of the run", "value"), made)),
    ]


def _units(report: LayerReport) -> Section:
    """Cost and importance of every unit, in the order of the model."""
    scale = max((row.cost for row in report.units), default=1)
    rows = tuple(
        (
            row.name,
            Bar(row.cost, 0 if row.removed else row.cost, scale),
            "removed" if row.removed else "stays",
            number(row.importance, ".4g"),
            count(row.cost),
            row.kind,
            ", ".join(row.layers[:_NAMES]) + (" ..." if len(row.layers) > _NAMES else ""),
        )
        for row in report.units
    )
    columns = ("unit", "what stays of its cost", "", "importance", f"cost, {report.unit}", "kind", "layers")
    text = (f"Blocks and layers that could go, in the order of the model; importance by {report.criterion}.",)
    return Section("Units", text, Table(columns, rows))
