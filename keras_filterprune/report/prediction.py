"""What prices say about a run, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keras_filterprune.latency import Prices, SizedOperators
from keras_filterprune.report.document import Cell, Number, count, number, share

# Bytes per parameter.
FLOAT32, INT8 = 4, 1
COST_COLUMNS = ("whole model", "before", "after", "left")


@dataclass(frozen=True)
class Prediction:
    """Costs of all layers before and after, at some prices.

    Attributes:
        what: what is predicted of a layer, with its unit.
        whole: row of the whole model.
        before, after: {layer: value}, without the cost of a call.
        notes: where it comes from, and what it leaves out.
        digits: how values are shown, a format.
    """

    what: str
    whole: tuple[Cell, ...]
    before: dict[str, float]
    after: dict[str, float]
    notes: tuple[str, ...]
    digits: str

    def cell(self, value: float | None) -> Number | None:
        """A value with as many digits as it deserves."""
        return number(value, self.digits)


def predict(operators: tuple[SizedOperators, SizedOperators] | None, prices: Prices | None) -> Prediction | None:
    """What the prices say of the operators before and after; None where there are no prices."""
    if operators is None or prices is None:
        return None
    factor = 1e3 if prices.exact else 1.0
    before, after = (
        {layer: factor * value for layer, value in side.by_layer(prices.price).items()} for side in operators
    )
    a, b = (sum(side.values()) + factor * prices.floor for side in (before, after))
    if prices.exact:
        what, whole = prices.small_unit, (prices.small_unit, count(round(a)), count(round(b)), share(b, a))
    else:
        cells = number(a / 1e3, ".3f"), number(b / 1e3, ".3f"), share(b, a)
        what, whole = f"predicted {prices.units[1]}", (f"predicted {prices.unit}", *cells)
    notes = [f"Predicted by {prices.source}."]
    if unknown := {layer: kind for side in operators for layer, kind in side.unknown.items()}:
        named = ", ".join(f"{layer} ({kind})" for layer, kind in unknown.items())
        notes.append(f"Without a prediction, and left out: {named}.")
    return Prediction(what, whole, before, after, tuple(notes), ",.0f" if prices.exact else ",.2f")


def cost_rows(macs: Sequence[float], params: Sequence[float], prediction: Prediction | None) -> list[tuple[Cell, ...]]:
    """What the whole model costs: (what, before, after, what is left)."""
    rows = {
        "multiply-accumulates (MACs)": macs,
        "parameters": params,
        "bytes of the weights, float32": [FLOAT32 * n for n in params],
        "bytes of the weights, int8 (estimate: one per parameter)": [INT8 * n for n in params],
    }
    cells: list[tuple[Cell, ...]] = [(what, count(a), count(b), share(b, a)) for what, (a, b) in rows.items()]
    return [*cells, prediction.whole] if prediction else cells
