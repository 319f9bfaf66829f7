"""What one pruning run did, as a value, as JSON and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from keras_filterprune.cost import LatencyTable, PaddedMacs, SizedOperators
from keras_filterprune.rebuild.plan import PruningPlan
from keras_filterprune.report.document import Section
from keras_filterprune.report.prune_sections import prune_closing, prune_sections
from keras_filterprune.report.saving import SavedReport


@dataclass(frozen=True)
class LayerRow:
    """One layer before and after: channels, multiply-accumulates and parameters; `pinned` is why filters of it stay."""

    layer: str
    channels: int
    kept: int
    macs: int
    macs_after: int
    params: int
    params_after: int
    pinned: str = ""


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
        prices: what a `LatencyBudget` was given, None for other budgets.
    """

    plan: PruningPlan
    layers: tuple[LayerRow, ...]
    approximate: dict[str, list[str]]
    verification: float | None
    compensation: str
    notes: list[str] = field(default_factory=list)
    channel_multiple: int | str = 1
    operators: tuple[SizedOperators, SizedOperators] | None = field(default=None, repr=False)
    prices: LatencyTable | PaddedMacs | None = None

    @property
    def pinned(self) -> list[dict[str, Any]]:
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
        }

    def summary(self) -> str:
        """Two or three lines: cost before and after, proof, notes."""
        (macs, macs_after), (params, params_after) = self.plan.cost["macs"], self.plan.cost["params"]
        proof = "not verified" if self.verification is None else f"verified to {self.verification:.1e} relative"
        lines = [
            f"MACs {macs:,} -> {macs_after:,} ({_percent(macs_after, macs)}), "
            f"params {params:,} -> {params_after:,} ({_percent(params_after, params)})",
            f"surgery {proof}; compensation: {self.compensation}",
        ]
        if self.approximate:
            lines.append(f"{len(self.approximate)} groups cross statistics over channels and are approximate")
        return "\n".join(lines + self.notes)

    def table(self) -> Table:
        """Channels, MACs and parameters per layer."""
        table = Table(title=f"{self.plan.model['name']}: {self.plan.method}")
        table.add_column("layer")
        for name in ("channels", "kept", "MACs", "after", "params", "after"):
            table.add_column(name, justify="right")
        for row in self.layers:
            numbers = (row.channels, row.kept, row.macs, row.macs_after, row.params, row.params_after)
            table.add_row(row.layer, *(f"{n:,}" for n in numbers))
        return table

    @property
    def _title(self) -> str:
        return f"{self.plan.model['name']}, pruned by {self.plan.method}"

    def _sections(self, prices: LatencyTable | PaddedMacs | None) -> list[Section]:
        return prune_sections(self, prices)

    def _closing(self) -> list[Section]:
        return prune_closing(self)


def _percent(after: int, before: int) -> str:
    return f"{100 * after / before:.1f} %" if before else "nothing"
