"""What a pruned model may cost, and the costs and prices that budgets are made of."""

from keras_filterprune.cost import (
    BopsBudget,
    Budget,
    Cost,
    CostModel,
    CountBudget,
    FiltersBudget,
    MacsBudget,
    ParamsBudget,
    RedundancyBudget,
    Tiles,
)
from keras_filterprune.latency import LatencyBudget, LatencyTable, Prices, count_macs

__all__ = [
    "BopsBudget",
    "Budget",
    "Cost",
    "CostModel",
    "CountBudget",
    "FiltersBudget",
    "LatencyBudget",
    "LatencyTable",
    "MacsBudget",
    "ParamsBudget",
    "Prices",
    "RedundancyBudget",
    "Tiles",
    "count_macs",
]
