"""prune_model and its two halves: options, one task, its rounds, the public verbs."""

from keras_filterprune.pruning.api import apply_plan as apply_plan
from keras_filterprune.pruning.api import plan_pruning as plan_pruning
from keras_filterprune.pruning.api import prune_model as prune_model
