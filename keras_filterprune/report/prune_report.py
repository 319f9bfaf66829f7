"""What one pruning run did: as a value, as JSON, as a table, and section by section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import rich.table

from keras_filterprune.checks import visible
from keras_filterprune.cost import Tiles, as_widths
from keras_filterprune.latency import Prices, SizedOperators
from keras_filterprune.rebuild.plan import PruningPlan
from keras_filterprune.report.base import SavedReport
from keras_filterprune.report.document import (
    Bar,
    Cell,
    Number,
    Section,
    Table,
    Tag,
    count,
    share,
    without_empty_columns,
)
from keras_filterprune.report.prediction import COST_COLUMNS, FLOAT32, INT8, Prediction, cost_rows, predict
from keras_filterprune.summarised import change_of
from keras_filterprune.terminal import cell

_TOP, _NAMES = 10, 2


@dataclass(frozen=True)
class LayerRow:
    """One layer before and after: channels, multiply-accumulates and parameters.

    `pinned` is why filters of it stay, `groups` are those that its filters go with.
    """

    layer: str
    channels: int
    kept: int
    macs: int
    macs_after: int
    params: int
    params_after: int
    pinned: str = ""
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spent:
    """What a budget counts, in its `unit`, before and after."""

    unit: str
    before: int
    after: int


@dataclass(frozen=True, eq=False)
class PruneReport(SavedReport):
    """What was removed, what was not and why, and how far the result is proven.

    Attributes:
        plan: the `PruningPlan` that was applied.
        layers: one `LayerRow` per layer that has weights.
        pinned: [{"layer", "channels", "reason"}], what could not be pruned.
        approximate: {group: reasons} for groups that cross statistics over channels.
        verification: largest relative difference to the masked original, None when `verify=False`.
        compensation: what the compensator did, in one sentence; "none" if nothing.
        notes: everything else worth knowing.
        channel_multiple: as in `prune_model`.
        operators: of the LiteRT files before and after, for predictions (None: not known).
        prices: those behind the budget, None where there are none.
        spent: what the budget counts, before and after; None where these are MACs or parameters (None).

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> small, report = kfp.prune_model(keras.Sequential(layers), "l2", 0.5, return_report=True)
        >>> [(row.layer, row.channels, row.kept) for row in report.layers][0]
        ('conv', 8, 4)
        >>> report.plan.cost["macs"]
        [8352, 4176]
    """

    plan: PruningPlan
    layers: tuple[LayerRow, ...]
    approximate: dict[str, list[str]]
    verification: float | None
    compensation: str
    notes: list[str] = field(default_factory=list)
    channel_multiple: int | str | Tiles = 1
    operators: tuple[SizedOperators, SizedOperators] | None = field(default=None, repr=False)
    prices: Prices | None = None
    spent: Spent | None = None

    @property
    def pinned(self) -> list[dict[str, Any]]:
        """What could not be pruned, and why, as in the plan."""
        return self.plan.pinned

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "plan": self.plan.to_dict(),
            "layers": [asdict(row) for row in self.layers],
            "approximate": self.approximate,
            "verification": self.verification,
            "compensation": self.compensation,
            "notes": self.notes,
        } | ({} if self.spent is None else {"spent": asdict(self.spent)})

    def summary(self) -> str:
        """Some lines: cost before and after, what the budget counts, proof, notes."""
        proof = "not verified" if self.verification is None else f"verified to {self.verification:.1e} relative"
        lines = [self.plan.change, f"surgery {proof}; compensation: {self.compensation}"]
        if self.spent:
            lines.insert(1, f"budget: {change_of(self.spent.before, self.spent.after, self.spent.unit)}")
        if self.approximate:
            lines.append(f"{len(self.approximate)} groups cross statistics over channels and are approximate")
        return visible("\n".join(lines + self.notes))

    def table(self) -> rich.table.Table:
        """Channels, MACs and parameters per layer."""
        table = rich.table.Table(title=cell(f"{self.plan.model['name']}: {self.plan.method}", "table.title"))
        table.add_column("layer")
        for name in ("channels", "kept", "MACs", "after", "params", "after"):
            table.add_column(name, justify="right")
        for row in self.layers:
            numbers = (row.channels, row.kept, row.macs, row.macs_after, row.params, row.params_after)
            table.add_row(cell(row.layer), *(f"{n:,}" for n in numbers))
        return table

    @property
    def _title(self) -> str:
        return f"{self.plan.model['name']}, pruned by {self.plan.method}"

    @property
    def _costs(self) -> Mapping[str, Sequence[float]]:
        return self.plan.cost

    def _sections(self, prices: Prices | None) -> list[Section]:
        return _prune_sections(self, prices)

    def _closing(self) -> list[Section]:
        return _prune_closing(self)


def _prune_sections(report: PruneReport, prices: Prices | None) -> list[Section]:
    """Cost, widths, layers, and what stays whole."""
    prediction = predict(report.operators, prices)
    tiles = as_widths(report.channel_multiple) if prices is None else prices.tiles
    sections = [_glance(report, prediction), _widths(report), _costly(report, prediction)]
    sections.append(_layers(report, prediction, tiles))
    pinned = tuple((pin["layer"], count(pin["channels"]), pin["reason"]) for pin in report.pinned)
    if pinned:
        text = ("Filters that could not be removed, and groups that were not to be.",)
        sections.append(Section("What is pinned, and why", text, Table(("layer", "filters", "because it"), pinned)))
    if report.approximate:
        rows = tuple((group, "; ".join(why)) for group, why in report.approximate.items())
        text = ("Removal is exact everywhere else.",)
        sections.append(Section("Approximate groups", text, Table(("group", "because"), rows)))
    return sections


def _prune_closing(report: PruneReport) -> list[Section]:
    """Proof, notes, and how the run was made."""
    plan = report.plan
    made = {
        "model": plan.model["name"],
        "method": plan.method,
        "budget": plan.budget,
        "channel multiple": str(report.channel_multiple),
        "seed": str(plan.seed),
        "versions": ", ".join(f"{name} {version}" for name, version in plan.versions.items()),
        "topology, SHA-256": plan.model["topology"],
        "weights, SHA-256": plan.model["weights"],
    }
    proof = (
        "The surgery was not verified."
        if report.verification is None
        else f"The surgery is verified to {report.verification:.1e} relative, against the original with the consumers' "
        "weights of removed channels set to zero."
    )
    text = (proof, f"Compensation: {report.compensation}.", *report.notes)
    table = Table(("part of the plan", "value"), tuple(made.items()))
    return [Section("Proof and notes", text), Section("How it was made", (), table)]


def _glance(report: PruneReport, prediction: Prediction | None) -> Section:
    cost = report.plan.cost
    rows = cost_rows(cost["macs"], cost["params"], prediction)
    if report.spent and prediction is None:
        spent = report.spent
        rows.append((spent.unit, count(spent.before), count(spent.after), share(spent.after, spent.before)))
    units = [(g["size"], len(g["kept"])) for g in report.plan.groups]
    before, after = (sum(side) for side in zip(*units, strict=True)) if units else (0, 0)
    rows.insert(0, ("units (filters that go together)", count(before), count(after), share(after, before)))
    cut = sum(kept < size for size, kept in units)
    text = (f"{cut} of {len(units)} groups became narrower.", *(prediction.notes if prediction else ()))
    return Section("At a glance", text, Table(COST_COLUMNS, tuple(rows)))


def _widths(report: PruneReport) -> Section:
    """One bar per group, all on one scale."""
    why = {(pin["layer"], pin["channels"]): pin["reason"] for pin in report.pinned}
    widest = max((group["size"] for group in report.plan.groups), default=1)
    rows = []
    for turn, group in enumerate(report.plan.groups):
        size, kept = group["size"], len(group["kept"])
        layers = list(dict.fromkeys(member["layer"] for member in group["members"]))
        more = f" and {len(layers) - _NAMES} more" if len(layers) > _NAMES else ""
        whole = why.get((group["name"], size), "") if kept == size else ""
        row = (Tag(turn, group["name"]), Bar(size, kept, widest), count(size), count(kept), share(kept, size))
        rows.append((*row, ", ".join(layers[:_NAMES]) + more, whole))
    columns = ("group", "kept of all units", "units", "kept", "left", "weights in", "whole because it")
    text = ("Groups are filters of layers that depend on each other, and go together.",)
    return Section("Widths", text, without_empty_columns(Table(columns, tuple(rows))))


def _costly(report: PruneReport, prediction: Prediction | None) -> Section:
    """The layers that most of what is left is spent in."""
    if prediction:
        before, after, what = prediction.before, prediction.after, prediction.what
    else:
        before, after = ({row.layer: getattr(row, key) for row in report.layers} for key in ("macs", "macs_after"))
        what = "MACs"
    whole = sum(after.values())
    order = [layer for layer in sorted(after, key=lambda layer: -after[layer]) if after[layer]][:_TOP]
    scale = max((max(before.get(layer, 0), after[layer]) for layer in order), default=1)

    def cell(value: float | None) -> Number | None:
        return prediction.cell(value) if prediction else count(value)

    rows = tuple(
        (
            layer,
            Bar(before.get(layer, 0), after[layer], scale),
            cell(before.get(layer)),
            cell(after[layer]),
            share(after[layer], whole),
        )
        for layer in order
    )
    columns = ("layer", "after, of before", f"{what}, before", "after", "share of what is left")
    spending = sum(1 for value in after.values() if value)
    text = (f"The {len(order)} layers that cost most now, of {spending} that cost anything.",)
    return Section("Where the cost is", text, Table(columns, rows))


def _layers(report: PruneReport, prediction: Prediction | None, tiles: Tiles) -> Section:
    turns = {group["name"]: turn for turn, group in enumerate(report.plan.groups)}
    rows = tuple(_layer(row, turns, prediction, tiles) for row in report.layers)
    what = prediction.what if prediction else "predicted"
    columns = (
        *("layer", "channels", "kept", "removed", "free", "room", "MACs, before", "after"),
        *("float32 bytes, before", "after", "int8 bytes (estimate)", f"{what}, before", "after", "pinned: it"),
    )
    text = ["Every layer with weights, in the order of the model; of one colour are those whose filters go together."]
    if tiles.step > 1:
        text.append(
            f"Output channels are computed in {tiles}. Free: kept filters without which this layer would take as long, "
            "because their step is begun anyway. Room: how many more that step would hold."
        )
    if prediction:
        named = {row.layer for row in report.layers}
        rest = (sum(v for n, v in side.items() if n not in named) for side in (prediction.before, prediction.after))
        a, b = (format(value, prediction.digits) for value in rest)
        text.append(f"Layers without weights (sums, pooling ...), {prediction.what}: {a} before, {b} after.")
    return Section("Layers", tuple(text), without_empty_columns(Table(columns, rows)))


def _layer(row: LayerRow, turns: dict[str, int], prediction: Prediction | None, tiles: Tiles) -> tuple[Cell, ...]:
    widths: tuple[Cell, ...] = (None, None, None)
    if row.channels:
        widths = count(row.channels), count(row.kept), count(row.channels - row.kept)
    steps: tuple[Cell, ...] = (None, None)
    if tiles.step > 1 and row.macs_after and row.channels and row.kept:
        steps = count(row.kept - tiles.before(row.kept, 1) - 1), count(tiles.ceil(row.kept) - row.kept)
    times: tuple[Cell, ...] = (None, None)
    if prediction:
        times = prediction.cell(prediction.before.get(row.layer)), prediction.cell(prediction.after.get(row.layer))
    return (
        Tag(turns[row.groups[0]], row.layer) if row.groups else row.layer,
        *widths,
        *steps,
        count(row.macs),
        count(row.macs_after),
        *(count(bytes_each * n) for bytes_each, n in ((FLOAT32, row.params), (FLOAT32, row.params_after))),
        count(INT8 * row.params_after),
        *times,
        row.pinned,
    )
