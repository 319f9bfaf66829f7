"""What a latency table says about a run, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from keras_filterprune.latency import LatencyTable, PaddedMacs, SizedOperators
from keras_filterprune.report.document import Cell, Number, count, number, share

# Bytes per parameter.
FLOAT32, INT8 = 4, 1
COST_COLUMNS = ("whole model", "before", "after", "left")


@dataclass(frozen=True)
class Prediction:
    """Times of all layers before and after.

    Attributes:
        what: what is predicted of a layer, with its unit.
        whole: row of the whole model, in the table's larger unit.
        before, after: {layer: value}, without the cost of a call.
        notes: where it comes from, and what it leaves out.
    """

    what: str
    whole: tuple[Cell, ...]
    before: dict[str, float]
    after: dict[str, float]
    notes: tuple[str, ...]

    def cell(self, value: float | None) -> Number | None:
        """A value with as many digits as it deserves."""
        return number(value, ",.2f" if self.what.startswith("predicted") else ",.0f")


def predict(
    operators: tuple[SizedOperators, SizedOperators] | None, prices: LatencyTable | PaddedMacs | None
) -> Prediction | None:
    """What the prices say of the operators before and after; None where there are no prices."""
    if operators is None or prices is None:
        return None
    before, after = (side.by_layer(prices.price) for side in operators)
    if isinstance(prices, LatencyTable):
        unit = "µs" if prices.unit == "ms" else "thousand instructions"
        what, factor = f"predicted {unit}", 1.0
        source = f"{prices.data_type} on {prices.device}, {prices.threads} thread(s)"
        notes = [f"Predicted by a table of measured operators: {source}; {prices.floor:.2f} {unit} are for the call."]
    else:
        what, factor = "MACs in whole steps", 1e3
        notes = [f"Predicted by multiply-accumulates in whole steps of {prices.device}; nothing was measured."]
    if unknown := {layer: kind for side in operators for layer, kind in side.unknown.items()}:
        named = ", ".join(f"{layer} ({kind})" for layer, kind in unknown.items())
        notes.append(f"Without a prediction, and left out: {named}.")
    before, after = ({layer: factor * value for layer, value in side.items()} for side in (before, after))
    a, b = (sum(side.values()) + prices.floor for side in (before, after))
    cells = (count(round(a)), count(round(b))) if factor == 1e3 else (number(a / 1e3, ".3f"), number(b / 1e3, ".3f"))
    whole = (f"predicted {prices.unit}" if isinstance(prices, LatencyTable) else what, *cells, share(b, a))
    return Prediction(what, whole, before, after, tuple(notes))


def cost_rows(macs: tuple[int, int], params: tuple[int, int], prediction: Prediction | None) -> list[tuple[Cell, ...]]:
    """What the whole model costs: (what, before, after, what is left)."""
    rows = [
        ("multiply-accumulates (MACs)", *macs),
        ("parameters", *params),
        ("bytes of the weights, float32", *(FLOAT32 * n for n in params)),
        ("bytes of the weights, int8 (estimate: one per parameter)", *(INT8 * n for n in params)),
    ]
    cells = [(what, count(a), count(b), share(b, a)) for what, a, b in rows]
    return cells + ([prediction.whole] if prediction else [])
