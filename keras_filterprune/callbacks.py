"""Callbacks for `model.fit`, and the schedules they follow."""

from keras_filterprune.training import (
    BridgeoutSchedule,
    BudgetGates,
    ClusterPruning,
    GrowAndPrune,
    PenaltySchedule,
    PruningSchedule,
    SensitivityScorer,
    SoftPruning,
    exponential,
    polynomial,
)

__all__ = [
    "BridgeoutSchedule",
    "BudgetGates",
    "ClusterPruning",
    "GrowAndPrune",
    "PenaltySchedule",
    "PruningSchedule",
    "SensitivityScorer",
    "SoftPruning",
    "exponential",
    "polynomial",
]
