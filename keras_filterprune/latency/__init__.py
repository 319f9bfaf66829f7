"""What a model takes on a processor: its operators, their prices, and budgets on the sum."""

from keras_filterprune.latency.budget import LatencyBudget as LatencyBudget
from keras_filterprune.latency.prices import PaddedMacs as PaddedMacs
from keras_filterprune.latency.prices import Prices as Prices
from keras_filterprune.latency.prices import as_prices as as_prices
from keras_filterprune.latency.prices import count_macs as count_macs
from keras_filterprune.latency.sized import SizedOperators as SizedOperators
from keras_filterprune.latency.table import LatencyTable as LatencyTable
from keras_filterprune.latency.table import operators_to_measure as operators_to_measure
