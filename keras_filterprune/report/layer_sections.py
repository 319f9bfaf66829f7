"""What a `LayerReport` says, section by section."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_filterprune.cost import LatencyTable, PaddedMacs
from keras_filterprune.report.document import Bar, Section, Table, count, number, share
from keras_filterprune.report.prediction import predict
from keras_filterprune.report.prune_sections import COST_COLUMNS, cost_rows

if TYPE_CHECKING:
    from keras_filterprune.report.removed_layers import LayerReport

_NAMES = 6


def layer_sections(report: LayerReport, prices: LatencyTable | PaddedMacs | None) -> list[Section]:
    """Cost, units, and layers that are in none."""
    prediction = predict(report.operators, prices)
    rows = cost_rows(report.cost["macs"], report.cost["params"], prediction)
    others = {unit: pair for unit, pair in report.cost.items() if unit not in ("macs", "params")}
    rows += [(unit, count(before), count(after), share(after, before)) for unit, (before, after) in others.items()]
    gone = ", ".join(report.removed) or "nothing"
    text = (f"{len(report.removed)} of {len(report.units)} units removed: {gone}.",)
    text += prediction.notes if prediction else ()
    sections = [Section("At a glance", text, Table(COST_COLUMNS, tuple(rows))), _units(report)]
    if report.unremovable:
        table = Table(("layer", "because it"), tuple(report.unremovable.items()))
        sections.append(Section("Layers that could not be removed, and why", (), table))
    return sections


def layer_closing(report: LayerReport) -> list[Section]:
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
