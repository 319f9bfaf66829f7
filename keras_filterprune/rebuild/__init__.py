"""From a plan to a smaller model: clone, copy, prove."""

from keras_filterprune.rebuild.clone import rebuild as rebuild
from keras_filterprune.rebuild.plan import PruningPlan as PruningPlan
from keras_filterprune.rebuild.verify import verify as verify
