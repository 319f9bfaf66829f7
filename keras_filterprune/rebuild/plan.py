"""PruningPlan: which units every group keeps, as a value that can be read, edited, saved and replayed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import PlanMismatchError
from keras_filterprune.files import write_json
from keras_filterprune.graph.types import ChannelGraph

FORMAT = 1
_FIELDS = ("model", "method", "budget", "seed", "versions", "groups", "layers", "pinned", "cost")


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """What to remove from one model; plain data, written as plan.json (format 1).

    Attributes:
        model: {"name", "topology", "weights"}: name and SHA-256 fingerprints of the model it was made for.
        method, budget: how the plan was made, as text.
        seed: seed it was made with.
        versions: of keras_filterprune, keras, numpy and python.
        groups: per group {"name", "size", "kept": unit indices, "members": [{"layer", "weight", "axis"}]}.
        layers: {layer: {"channels": n, "kept": indices of its own channels}}, normalization layers included, of every
            layer that loses channels.
        pinned: [{"layer", "channels", "reason"}].
        cost: {"macs": [before, after], "params": [before, after]}.
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
        """{layer: indices of its own output channels that stay}."""
        return {layer: np.array(entry["kept"], int) for layer, entry in self.layers.items()}

    def to_dict(self) -> dict[str, Any]:
        """The content of plan.json."""
        return {"format": FORMAT} | {name: getattr(self, name) for name in _FIELDS}

    def save(self, path: str | os.PathLike) -> None:
        """Write plan.json in one step: readers see the old file or the whole new one."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike) -> PruningPlan:
        """Read a plan.

        Raises:
            PlanMismatchError: the file is not a plan, is damaged, or of another format.
        """
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise PlanMismatchError(f"cannot read a plan from '{path}': {error}.") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise PlanMismatchError(f"'{path}' is no plan of format {FORMAT}. Received: format={found!r}.")
        missing = [name for name in _FIELDS if name not in content]
        if missing:
            raise PlanMismatchError(f"'{path}' is no complete plan: {', '.join(missing)} missing.")
        return cls(**{name: content[name] for name in _FIELDS})


def units_of(plan: PruningPlan, graph: ChannelGraph) -> dict[str, np.ndarray]:
    """{group name: kept unit indices} of a plan, checked against the graph it is applied to."""
    kept = {}
    for entry in plan.groups:
        group = graph.by_name.get(entry["name"])
        if group is None or group.size != entry["size"]:
            size = None if group is None else group.size
            raise PlanMismatchError(
                f"the plan's group '{entry['name']}' has {entry['size']} units, the model's has {size}. The plan was "
                "made for another model."
            )
        units = np.asarray(entry["kept"], dtype=int).reshape(-1)
        if len(units) == 0 or (np.diff(units) <= 0).any() or units[0] < 0 or units[-1] >= group.size:
            raise PlanMismatchError(
                f"group '{entry['name']}' of the plan: kept indices must be increasing, within 0..{group.size - 1}, "
                f"and not empty. Received: {entry['kept']}."
            )
        kept[group.name] = units
    return kept


def kept_channels(graph: ChannelGraph, kept: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """{layer: {"channels": its own output channels, "kept": indices of those that stay}} where it has any."""
    alive = graph.kept_ids(kept)
    layers: dict[str, dict[str, Any]] = {}
    for bind in graph.binds:
        # A bias or gamma numbers the layer's own channels as well as the kernel does; a depthwise kernel fewer.
        if bind.role != "input" and len(bind.ids) > layers.get(bind.layer, {"channels": 0})["channels"]:
            layers[bind.layer] = {"channels": len(bind.ids), "kept": np.flatnonzero(alive[bind.ids]).tolist()}
    return layers


def fingerprint(graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray]) -> dict[str, str]:
    """SHA-256 of the wiring and of every weight; automatic names of raw operations do not count."""
    topology = hashlib.sha256()
    for call in graph.view.calls:
        name = call.path if isinstance(call.op, keras.layers.Layer) or not call.inputs else ""
        shapes = sorted(graph.weights.get(call.path, {}).items())
        topology.update(repr((type(call.op).__name__, name, call.inputs, call.output_shapes, shapes)).encode())
    values = hashlib.sha256()
    for key in sorted(weights):
        values.update(repr(key).encode())
        values.update(np.ascontiguousarray(weights[key]).data)
    return {"name": graph.view.name, "topology": topology.hexdigest(), "weights": values.hexdigest()}


def versions() -> dict[str, str]:
    """Versions of everything that decides a plan."""
    packages = {name: metadata.version(name) for name in ("keras", "numpy", "scipy")}
    return {"keras_filterprune": package_version(), **packages, "python": platform.python_version()}


def package_version() -> str:
    return metadata.version("keras-filterprune")
