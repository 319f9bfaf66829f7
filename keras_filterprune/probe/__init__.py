"""What is read from a live model: weights, and the values that run through it."""

from keras_filterprune.probe.execute import Executor as Executor
from keras_filterprune.probe.execute import random_inputs as random_inputs
from keras_filterprune.probe.weights import Weights as Weights
