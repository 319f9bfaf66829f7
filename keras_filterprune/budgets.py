"""What a pruned model may cost, and the costs and prices that budgets are made of."""

from keras_filterprune.cost import BopsBudget as BopsBudget
from keras_filterprune.cost import Budget as Budget
from keras_filterprune.cost import Cost as Cost
from keras_filterprune.cost import CostModel as CostModel
from keras_filterprune.cost import CountBudget as CountBudget
from keras_filterprune.cost import FiltersBudget as FiltersBudget
from keras_filterprune.cost import MacsBudget as MacsBudget
from keras_filterprune.cost import ParamsBudget as ParamsBudget
from keras_filterprune.cost import RedundancyBudget as RedundancyBudget
from keras_filterprune.cost import Tiles as Tiles
from keras_filterprune.latency import LatencyBudget as LatencyBudget
from keras_filterprune.latency import LatencyTable as LatencyTable
from keras_filterprune.latency import Prices as Prices
from keras_filterprune.latency import count_macs as count_macs
