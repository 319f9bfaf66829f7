"""What a model costs as a function of its widths, and budgets on it."""

from keras_filterprune.cost.base import Budget as Budget
from keras_filterprune.cost.base import CountBudget as CountBudget
from keras_filterprune.cost.budgets import BopsBudget as BopsBudget
from keras_filterprune.cost.budgets import FiltersBudget as FiltersBudget
from keras_filterprune.cost.budgets import MacsBudget as MacsBudget
from keras_filterprune.cost.budgets import ParamsBudget as ParamsBudget
from keras_filterprune.cost.budgets import RedundancyBudget as RedundancyBudget
from keras_filterprune.cost.budgets import as_budget as as_budget
from keras_filterprune.cost.budgets import as_cost_budget as as_cost_budget
from keras_filterprune.cost.model import Cost as Cost
from keras_filterprune.cost.model import CostModel as CostModel
from keras_filterprune.cost.model import Polynomial as Polynomial
from keras_filterprune.cost.tiles import TARGETS as TARGETS
from keras_filterprune.cost.tiles import Tiles as Tiles
from keras_filterprune.cost.tiles import as_tiles as as_tiles
from keras_filterprune.cost.tiles import as_widths as as_widths
