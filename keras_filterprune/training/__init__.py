"""Parts of `model.fit` that make a network prunable while it trains."""

from keras_filterprune.training.bridgeout import BatchBridgeout as BatchBridgeout
from keras_filterprune.training.bridgeout import BridgeoutSchedule as BridgeoutSchedule
from keras_filterprune.training.regularizers import BridgePenalty as BridgePenalty
from keras_filterprune.training.wrapping import apply_bridgeout as apply_bridgeout
from keras_filterprune.training.wrapping import strip_wrappers as strip_wrappers
