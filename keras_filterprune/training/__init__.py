"""Parts of `model.fit` that make a network prunable while it trains."""

from keras_filterprune.training.bridgeout import BatchBridgeout as BatchBridgeout
from keras_filterprune.training.bridgeout import BridgeoutSchedule as BridgeoutSchedule
from keras_filterprune.training.clusters import ClusterPruning as ClusterPruning
from keras_filterprune.training.filter_pruning import FilterPruning as FilterPruning
from keras_filterprune.training.fractions import exponential as exponential
from keras_filterprune.training.fractions import polynomial as polynomial
from keras_filterprune.training.gate import BranchGate as BranchGate
from keras_filterprune.training.growing import GrowAndPrune as GrowAndPrune
from keras_filterprune.training.penalty_schedule import PenaltySchedule as PenaltySchedule
from keras_filterprune.training.regularizers import BridgePenalty as BridgePenalty
from keras_filterprune.training.regularizers import GroupLasso as GroupLasso
from keras_filterprune.training.regularizers import apply_penalty as apply_penalty
from keras_filterprune.training.schedule import PruningSchedule as PruningSchedule
from keras_filterprune.training.schedule import SoftPruning as SoftPruning
from keras_filterprune.training.scorers import AttentionScorer as AttentionScorer
from keras_filterprune.training.scorers import DenseScorer as DenseScorer
from keras_filterprune.training.scorers import GateScorer as GateScorer
from keras_filterprune.training.scorers import PrunerNetwork as PrunerNetwork
from keras_filterprune.training.sensitivity_scorer import SensitivityScorer as SensitivityScorer
from keras_filterprune.training.steering import BudgetGates as BudgetGates
from keras_filterprune.training.wrapping import apply_bridgeout as apply_bridgeout
from keras_filterprune.training.wrapping import apply_filter_gates as apply_filter_gates
from keras_filterprune.training.wrapping import apply_filter_pruning as apply_filter_pruning
from keras_filterprune.training.wrapping import strip_wrappers as strip_wrappers
