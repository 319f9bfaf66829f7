"""Callbacks for `model.fit`, the schedules they follow, and the networks that say how gates move."""

from keras_filterprune.training import (
    AttentionScorer,
    BridgeoutSchedule,
    BudgetGates,
    ClusterPruning,
    DenseScorer,
    GateScorer,
    GrowAndPrune,
    PenaltySchedule,
    PrunerNetwork,
    PruningSchedule,
    SensitivityScorer,
    SoftPruning,
    exponential,
    polynomial,
)

__all__ = [
    "AttentionScorer",
    "BridgeoutSchedule",
    "BudgetGates",
    "ClusterPruning",
    "DenseScorer",
    "GateScorer",
    "GrowAndPrune",
    "PenaltySchedule",
    "PrunerNetwork",
    "PruningSchedule",
    "SensitivityScorer",
    "SoftPruning",
    "exponential",
    "polynomial",
]
