"""What `scan` shows: the groups of a model, what is pinned and why, and where the cost is."""

from __future__ import annotations

from typing import Any

from rich.console import Group as Rows
from rich.table import Table

from keras_filterprune.cost.model import CostModel
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.terminal import cell


def graph_dict(graph: ChannelGraph) -> dict[str, Any]:
    """The scan as plain data, ready for JSON."""
    cost = CostModel(graph)
    return {
        "model": graph.view.name,
        "macs": cost.macs(cost.sizes),
        "params": cost.params(cost.sizes),
        "reach": graph.reach,
        "input_shapes": {
            graph.view.calls[r.call].path: graph.view.calls[r.call].output_shapes[0] for r in graph.view.inputs
        },
        "filters_prunable": graph.filters,
        "filters_pinned": sum(p.channels for p in graph.pinned),
        "groups": [
            {"name": g.name, "units": g.size, "layers": list(g.producers), "approximate": list(g.approximate)}
            for g in graph.groups
        ],
        "pinned": [p._asdict() for p in graph.pinned],
        "layers": {name: {"macs": m, "params": p} for name, (m, p) in cost.per_layer(cost.sizes).items()},
        "macs_unknown": list(graph.uncounted),
    }


def graph_tables(graph: ChannelGraph) -> Rows:
    """The scan as tables for a terminal."""
    content = graph_dict(graph)
    groups = Table(title=cell(graph.summary().splitlines()[0], "table.title"))
    groups.add_column("group")
    groups.add_column("units", justify="right")
    groups.add_column("made by")
    groups.add_column("exact")
    for group in content["groups"]:
        made_by, exact = ", ".join(group["layers"]), "; ".join(group["approximate"]) or "yes"
        groups.add_row(*map(cell, (group["name"], str(group["units"]), made_by, exact)))
    pinned = Table(title=f"pinned: {content['filters_pinned']:,} filters")
    for name in ("layer", "filters", "because it"):
        pinned.add_column(name, justify="right" if name == "filters" else "left")
    for pin in graph.pinned:
        pinned.add_row(*map(cell, (pin.layer, str(pin.channels), pin.reason)))
    layers = Table(title=f"{content['macs']:,} MACs, {content['params']:,} parameters")
    for name in ("layer", "MACs", "params"):
        layers.add_column(name, justify="left" if name == "layer" else "right")
    for name, row in content["layers"].items():
        layers.add_row(cell(name), f"{row['macs']:,}", f"{row['params']:,}")
    notes = []
    if graph.view.open_inputs:
        notes.append(f"Open input sizes are counted as in {content['input_shapes']}.")
    if graph.uncounted:
        unknown = ", ".join(graph.uncounted)
        notes.append(f"MACs of these layers are estimated in the first line, and not in the last table: {unknown}.")
    return Rows(groups, pinned, layers, *map(cell, notes))
