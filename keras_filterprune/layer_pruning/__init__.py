"""LayerPrune: whole blocks and layers go, the least important first."""

from keras_filterprune.layer_pruning.importance import BlockGate as BlockGate
from keras_filterprune.layer_pruning.importance import Ensemble as Ensemble
from keras_filterprune.layer_pruning.importance import Imprinting as Imprinting
from keras_filterprune.layer_pruning.pruning import prune_layers as prune_layers
from keras_filterprune.report import LayerReport as LayerReport
