"""PruningPlan: which units every group keeps, as a value that can be read, edited, saved and replayed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import visible
from keras_filterprune.cost import CostModel
from keras_filterprune.errors import FileError, PlanMismatchError
from keras_filterprune.files import json_digest, read_json, write_json
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.live import plain_config
from keras_filterprune.graph.types import ChannelGraph, TensorRef
from keras_filterprune.summarised import Summarised, change_of

FORMAT = 1
_FIELDS = {
    "model": dict,
    "method": str,
    "budget": str,
    "seed": int,
    "versions": dict,
    "groups": list,
    "layers": dict,
    "pinned": list,
    "cost": dict,
}
_ENTRIES: dict[str, dict[str, type]] = {
    "model": {"name": str, "topology": str, "weights": str},
    "cost": {"macs": list, "params": list},
    "layers": {"channels": int, "kept": list},
    "pinned": {"layer": str, "channels": int, "reason": str},
}


@dataclass(frozen=True, eq=False)
class PruningPlan(Summarised):
    """What to remove from one model; plain data, written as plan.json (format 1).

    Attributes:
        model: {"name", "topology", "weights"}: name and SHA-256 fingerprints of the model it was made for.
        method, budget: how the plan was made, as text.
        seed: seed it was made with.
        versions: of keras_filterprune, keras, numpy and python.
        groups: per group {"name", "size", "kept": unit indices, "members": [{"layer", "weight", "axis"}]}.
        layers: {layer: {"channels": n, "kept": indices of its own channels}} of every layer that has channels of its
            own, normalization layers included, whole or not.
        pinned: [{"layer", "channels", "reason"}].
        cost: {"macs": [before, after], "params": [before, after]}.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> model = keras.Sequential(layers)
        >>> kfp.plan_pruning(model, "l2", 0.5).save("plan.json")
        >>> plan = kfp.PruningPlan.load("plan.json")
        >>> len(plan.kept["conv"]), plan.cost["macs"]
        (4, [8352, 4176])
        >>> kfp.apply_plan(model, plan).get_layer("conv").filters
        4
    """

    model: dict[str, str]
    method: str
    budget: str
    seed: int
    versions: dict[str, str]
    groups: list[dict[str, Any]]
    layers: dict[str, dict[str, Any]]
    pinned: list[dict[str, Any]]
    cost: dict[str, list[int]]

    @property
    def kept(self) -> dict[str, np.ndarray]:
        """{layer: indices of its own output channels that stay}, all of them where a layer stays whole."""
        return {layer: np.array(entry["kept"], int) for layer, entry in self.layers.items()}

    @property
    def sha256(self) -> str:
        """Of the content of plan.json, in hexadecimal: exported files can name the plan behind them."""
        return json_digest(self.to_dict())

    @property
    def change(self) -> str:
        """Multiply-accumulates and parameters before and after, as text."""
        kinds = {"MACs": self.cost["macs"], "params": self.cost["params"]}
        return ", ".join(f"{kind} {change_of(before, after)}" for kind, (before, after) in kinds.items())

    def summary(self) -> str:
        """How it was made, and what it changes, two lines."""
        cut = sum(len(group["kept"]) < group["size"] for group in self.groups)
        made = f"{self.model['name']}: {self.method}, {self.budget}, seed {self.seed}"
        return visible(f"{made}\n{self.change}; filters go from {cut} of {len(self.groups)} groups")

    def to_dict(self) -> dict[str, Any]:
        """The content of plan.json, which holds the `sha256` of it too."""
        return {"format": FORMAT} | {name: getattr(self, name) for name in _FIELDS}

    def save(self, path: str | os.PathLike) -> None:
        """Write plan.json in one step: readers see the old file or the whole new one.

        Raises:
            FileError: the file cannot be written.
        """
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike) -> PruningPlan:
        """Read a plan.

        To change one, `dataclasses.replace` what was loaded and save it: a file that was cut or edited no longer has
        the digest that it names, and is refused. Files of before 0.1, which name none, are read as they are.

        Raises:
            FileError: there is no such file, or it is no plan, damaged, or of another format.
        """
        content = read_json(path, "a plan")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise FileError(f"'{path}' is no plan of format {FORMAT}. Received: format={found!r}.")
        # Else a digest whose name is damaged would not be missed.
        if unknown := content.keys() - {"format", *_FIELDS}:
            raise FileError(f"'{path}' is no plan: plans have no {', '.join(sorted(unknown))}.")
        missing = [name for name in _FIELDS if name not in content]
        if missing:
            raise FileError(f"'{path}' is no complete plan: {', '.join(missing)} missing.")
        if wrong := _wrong_fields(content):
            raise FileError(f"'{path}' is no plan: {', '.join(wrong)} of another type than plans have.")
        if contradiction := _contradiction(content):
            raise FileError(f"'{path}' contradicts itself: {contradiction}. Make a new plan with plan_pruning().")
        return cls(**{name: content[name] for name in _FIELDS})


def _wrong_fields(content: dict[str, Any]) -> list[str]:
    """The fields of a plan's file that do not hold what plans do; `units_of` checks the groups, against the model."""
    wrong = [name for name, kind in _FIELDS.items() if type(content[name]) is not kind]
    if not wrong:
        entries = {name: [content[name]] for name in ("model", "cost")}
        entries |= {"layers": content["layers"].values(), "pinned": content["pinned"]}
        wrong = [name for name, found in entries.items() if not all(_holds(e, _ENTRIES[name]) for e in found)]
    wrong = wrong or (["seed"] if content["seed"] < 0 else [])
    return wrong or (["cost"] if any(len(content["cost"][kind]) != 2 for kind in _ENTRIES["cost"]) else [])


def _contradiction(content: dict[str, Any]) -> str | None:
    """What groups and layers of a plan's file say differently; a group has the name of a layer whose filters it is."""
    seen = set()
    for group in content["groups"]:
        name, size, kept = (group.get(key) if isinstance(group, dict) else None for key in ("name", "size", "kept"))
        if not isinstance(name, str) or type(size) is not int or size < 1 or not isinstance(kept, list):
            # `units_of` says what is wrong with it.
            continue
        if name in seen:
            return f"group '{name}' is there twice"
        seen.add(name)
        layer = content["layers"].get(name)
        if layer is not None and layer["channels"] * len(kept) != size * len(layer["kept"]):
            found = f"{len(layer['kept'])} of {layer['channels']} channels of layer '{name}' stay"
            return f"{found}, and {len(kept)} of {size} units of its group"
    return None


def _holds(entry: Any, kinds: dict[str, type]) -> bool:
    """Whether an entry is a dict with values of these types; lists are of integers."""
    if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in kinds.items()):
        return False
    return all(type(n) is int for key, kind in kinds.items() if kind is list for n in entry[key])


def units_of(plan: PruningPlan, graph: ChannelGraph) -> Kept:
    """The units that a plan keeps, checked against the graph; groups it leaves out stay whole."""
    kept: dict[str, np.ndarray] = {}
    for entry in plan.groups:
        name, size, units = (entry.get(key) if isinstance(entry, dict) else None for key in ("name", "size", "kept"))
        group = graph.by_name.get(name) if isinstance(name, str) else None
        if group is None or group.size != size:
            found = None if group is None else group.size
            raise PlanMismatchError(
                f"the plan's group {name!r} has {size} units, the model's has {found}. It was made for another model."
            )
        whole = isinstance(units, list) and all(type(unit) is int for unit in units)
        rising = sorted({*units} & {*range(group.size)}) if units and whole else []
        if not rising or units != rising:
            raise PlanMismatchError(
                f"group '{name}' of the plan: kept is a list of increasing integers within 0..{group.size - 1}, "
                f"not empty. Received: {units!r}."
            )
        kept[group.name] = np.array(rising, int)
    return Kept(graph, kept)


def refreshed(plan: PruningPlan, cost: CostModel, kept: Kept) -> PruningPlan:
    """The plan with groups, layers and cost written out for the units that stay."""
    return replace(
        plan,
        groups=[
            {
                "name": group.name,
                "size": group.size,
                "kept": kept[group.name].tolist(),
                "members": [{"layer": m.layer, "weight": m.weight, "axis": m.axis} for m in group.members],
            }
            for group in kept.graph.groups
        ],
        layers=kept.channels,
        cost={kind: [c(cost.sizes), c(kept.counts)] for kind, c in (("macs", cost.macs), ("params", cost.params))},
    )


def fingerprint(graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray]) -> dict[str, str]:
    """SHA-256 of what the model computes and of every weight; automatic names of inputs and operations do not count."""
    topology = hashlib.sha256()
    for call in graph.view.calls:
        name = call.path if call.inputs and isinstance(call.op, keras.layers.Layer) else ""
        config = _anonymous(plain_config(call.op)) if call.inputs else call.output_shapes
        topology.update(repr((type(call.op).__name__, name, config, _anonymous((call.args, call.kwargs)))).encode())
    values = hashlib.sha256()
    for key in sorted(weights):
        values.update(repr(key).encode())
        values.update(np.ascontiguousarray(weights[key]).data)
    return {"name": graph.view.name, "topology": topology.hexdigest(), "weights": values.hexdigest()}


def check_fingerprint(plan: PruningPlan, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray]) -> None:
    """Raise `PlanMismatchError` unless this is the model that the plan was made for, with the very weights."""
    found = fingerprint(graph, weights)
    for part in ("topology", "weights"):
        if found[part] != plan.model.get(part):
            raise PlanMismatchError(
                f"the plan was made for model '{plan.model.get('name')}' with {part} {str(plan.model.get(part))[:12]}; "
                f"model '{found['name']}' has {part} {found[part][:12]}. Make a new plan with plan_pruning()."
            )


def _anonymous(value: Any) -> Any:
    """A configuration without names and trainable flags; arrays by their bytes, objects by their type."""
    if isinstance(value, dict):
        return [(k, _anonymous(v)) for k, v in sorted(value.items(), key=str) if k not in ("name", "trainable")]
    if isinstance(value, list | tuple):
        return [_anonymous(v) for v in value]
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        array = np.asarray(value)
        return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()
    plain = value is None or isinstance(value, str | int | float | bool | slice | TensorRef)
    return value if plain else type(value).__name__
