"""A network that teaches another: `distill` with labels beside it, `recover` without."""

from keras_filterprune.distillation.distill import distill as distill
from keras_filterprune.distillation.recovery import Recovery as Recovery
from keras_filterprune.distillation.recovery import recover as recover
