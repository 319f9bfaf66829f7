"""LayerPrune: whole blocks and layers go, the least important first."""

from keras_filterprune.layer_pruning.importance import BlockGate, Ensemble, Imprinting
from keras_filterprune.layer_pruning.pruning import prune_layers
from keras_filterprune.report import LayerReport

__all__ = [
    "BlockGate",
    "Ensemble",
    "Imprinting",
    "LayerReport",
    "prune_layers",
]
