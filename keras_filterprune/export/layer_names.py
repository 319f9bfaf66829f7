"""Which Keras layer a tensor of TensorFlow or of a `.tflite` file comes from."""

from __future__ import annotations

import re
from typing import Any

import keras

_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "CONV_3D")


class LayerNames:
    """Finds Keras layers by the names that TensorFlow gives to what they compute.

    Args:
        model: the model that was converted.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._inner: dict[int, dict[str, Any]] = {}

    def find(self, tensor_name: str, kind: str = "") -> tuple[str, Any] | None:
        """Path and layer that compute a tensor, by its name; None if that mentions none.

        Names of fused operators mention several layers: convolutions and products go to the one with the weights,
        others (`kind` is the operator) to the first.
        """
        found = list(filter(None, map(self._layer_of_scope, tensor_name.split(";"))))
        if kind in _WEIGHTED:
            found.sort(key=lambda place: not hasattr(place[1], "kernel"))
        return found[0] if found else None

    def _layer_of_scope(self, scope: str) -> tuple[str, Any] | None:
        level, path, layer = self._model, [], None
        for part in scope.split("/"):
            # TensorFlow numbers every scope: layer "conv" is found as conv_1, layer "conv_1" as conv_1_2.
            names = self._layers_of(level)
            name = next((n for n in (re.sub(r"_\d+$", "", part), part) if n in names), None)
            if name is not None:
                path.append(name)
                layer = names[name]
            # The model's own scope stands first.
            if not isinstance(layer, keras.Model) and (layer is not None or part != scope.split("/")[0]):
                break
            level = layer or level
        return ("/".join(path), layer) if layer is not None else None

    def _layers_of(self, model: keras.Model) -> dict[str, Any]:
        if id(model) not in self._inner:
            self._inner[id(model)] = {layer.name: layer for layer in model.layers}
        return self._inner[id(model)]
