"""Structured pruning for Keras 3: a model and a budget go in, a smaller ordinary Keras model comes out.

Start at `prune_model`; `analyze`, `plan_pruning` and `apply_plan` are its three steps. Keras is imported with the first
name that needs it, not with this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_filterprune.allocators import Evolution as Evolution
    from keras_filterprune.allocators import Global as Global
    from keras_filterprune.allocators import Search as Search
    from keras_filterprune.allocators import Sensitivity as Sensitivity
    from keras_filterprune.allocators import Tolerance as Tolerance
    from keras_filterprune.allocators import Uniform as Uniform
    from keras_filterprune.analysis import analyze as analyze
    from keras_filterprune.compensators import Adapters as Adapters
    from keras_filterprune.compensators import BNRecalibration as BNRecalibration
    from keras_filterprune.compensators import LeastSquares as LeastSquares
    from keras_filterprune.compensators import Linear as Linear
    from keras_filterprune.compensators import MeanShift as MeanShift
    from keras_filterprune.compensators import Merge as Merge
    from keras_filterprune.cost import BopsBudget as BopsBudget
    from keras_filterprune.cost import CostModel as CostModel
    from keras_filterprune.cost import FiltersBudget as FiltersBudget
    from keras_filterprune.cost import MacsBudget as MacsBudget
    from keras_filterprune.cost import ParamsBudget as ParamsBudget
    from keras_filterprune.cost import RedundancyBudget as RedundancyBudget
    from keras_filterprune.criteria import FPGM as FPGM
    from keras_filterprune.criteria import FPOMP as FPOMP
    from keras_filterprune.criteria import L1 as L1
    from keras_filterprune.criteria import L2 as L2
    from keras_filterprune.criteria import LRF as LRF
    from keras_filterprune.criteria import APoZ as APoZ
    from keras_filterprune.criteria import BNScale as BNScale
    from keras_filterprune.criteria import CaP as CaP
    from keras_filterprune.criteria import Dead as Dead
    from keras_filterprune.criteria import Energy as Energy
    from keras_filterprune.criteria import GateTaylor as GateTaylor
    from keras_filterprune.criteria import Genetic as Genetic
    from keras_filterprune.criteria import GeometricMean as GeometricMean
    from keras_filterprune.criteria import MeanActivation as MeanActivation
    from keras_filterprune.criteria import Nystrom as Nystrom
    from keras_filterprune.criteria import OperatorNorm as OperatorNorm
    from keras_filterprune.criteria import OutputPursuit as OutputPursuit
    from keras_filterprune.criteria import Random as Random
    from keras_filterprune.criteria import Similarity as Similarity
    from keras_filterprune.criteria import Taylor as Taylor
    from keras_filterprune.errors import CalibrationDataError as CalibrationDataError
    from keras_filterprune.errors import ExportError as ExportError
    from keras_filterprune.errors import FilterPruneError as FilterPruneError
    from keras_filterprune.errors import InfeasibleBudgetError as InfeasibleBudgetError
    from keras_filterprune.errors import PlanMismatchError as PlanMismatchError
    from keras_filterprune.errors import SurgeryError as SurgeryError
    from keras_filterprune.errors import UnknownNameError as UnknownNameError
    from keras_filterprune.errors import UnsupportedLayerError as UnsupportedLayerError
    from keras_filterprune.errors import UnsupportedModelError as UnsupportedModelError
    from keras_filterprune.export import Metadata as Metadata
    from keras_filterprune.export import export_tflite as export_tflite
    from keras_filterprune.export import read_metadata as read_metadata
    from keras_filterprune.handlers import Handler as Handler
    from keras_filterprune.handlers import register_handler as register_handler
    from keras_filterprune.latency import LatencyBudget as LatencyBudget
    from keras_filterprune.latency import LatencyTable as LatencyTable
    from keras_filterprune.layer_pruning import Ensemble as Ensemble
    from keras_filterprune.layer_pruning import Imprinting as Imprinting
    from keras_filterprune.layer_pruning import prune_layers as prune_layers
    from keras_filterprune.measuring import measure_latency as measure_latency
    from keras_filterprune.methods import Method as Method
    from keras_filterprune.methods import list_methods as list_methods
    from keras_filterprune.methods import register_method as register_method
    from keras_filterprune.pruning import apply_plan as apply_plan
    from keras_filterprune.pruning import plan_pruning as plan_pruning
    from keras_filterprune.pruning import prune_model as prune_model
    from keras_filterprune.rebuild import PruningPlan as PruningPlan
    from keras_filterprune.report import LayerReport as LayerReport
    from keras_filterprune.report import PruneReport as PruneReport
    from keras_filterprune.studies import BopsTable as BopsTable
    from keras_filterprune.studies import SensitivityTable as SensitivityTable
    from keras_filterprune.studies import bops_table as bops_table
    from keras_filterprune.studies import sensitivity as sensitivity
    from keras_filterprune.tfmot import export_qat as export_qat
    from keras_filterprune.tfmot import to_tf_keras as to_tf_keras
    from keras_filterprune.tfmot import train_in_tf_keras as train_in_tf_keras
    from keras_filterprune.training import BatchBridgeout as BatchBridgeout
    from keras_filterprune.training import BridgeoutSchedule as BridgeoutSchedule
    from keras_filterprune.training import BridgePenalty as BridgePenalty
    from keras_filterprune.training import BudgetGates as BudgetGates
    from keras_filterprune.training import FilterPruning as FilterPruning
    from keras_filterprune.training import GroupLasso as GroupLasso
    from keras_filterprune.training import PenaltySchedule as PenaltySchedule
    from keras_filterprune.training import PruningSchedule as PruningSchedule
    from keras_filterprune.training import SensitivityScorer as SensitivityScorer
    from keras_filterprune.training import SoftPruning as SoftPruning
    from keras_filterprune.training import apply_bridgeout as apply_bridgeout
    from keras_filterprune.training import apply_filter_gates as apply_filter_gates
    from keras_filterprune.training import apply_filter_pruning as apply_filter_pruning
    from keras_filterprune.training import apply_penalty as apply_penalty
    from keras_filterprune.training import distill as distill
    from keras_filterprune.training import exponential as exponential
    from keras_filterprune.training import polynomial as polynomial
    from keras_filterprune.training import strip_wrappers as strip_wrappers

_HOME = {
    "allocators": ["Evolution", "Global", "Search", "Sensitivity", "Tolerance", "Uniform"],
    "analysis": ["analyze"],
    "cost": [
        "BopsBudget",
        "CostModel",
        "FiltersBudget",
        "MacsBudget",
        "ParamsBudget",
        "RedundancyBudget",
    ],
    "compensators": ["Adapters", "BNRecalibration", "LeastSquares", "Linear", "MeanShift", "Merge"],
    "criteria": [
        "APoZ",
        "BNScale",
        "CaP",
        "Dead",
        "Energy",
        "FPGM",
        "FPOMP",
        "GateTaylor",
        "Genetic",
        "GeometricMean",
        "L1",
        "L2",
        "LRF",
        "MeanActivation",
        "Nystrom",
        "OperatorNorm",
        "OutputPursuit",
        "Random",
        "Similarity",
        "Taylor",
    ],
    "errors": [
        "CalibrationDataError",
        "ExportError",
        "FilterPruneError",
        "InfeasibleBudgetError",
        "PlanMismatchError",
        "SurgeryError",
        "UnknownNameError",
        "UnsupportedLayerError",
        "UnsupportedModelError",
    ],
    "export": ["Metadata", "export_tflite", "read_metadata"],
    "latency": ["LatencyBudget", "LatencyTable"],
    "measuring": ["measure_latency"],
    "layer_pruning": ["Ensemble", "Imprinting", "prune_layers"],
    "handlers": ["Handler", "register_handler"],
    "methods": ["Method", "list_methods", "register_method"],
    "pruning": ["apply_plan", "plan_pruning", "prune_model"],
    "rebuild": ["PruningPlan"],
    "report": ["LayerReport", "PruneReport"],
    "studies": ["BopsTable", "SensitivityTable", "bops_table", "sensitivity"],
    "tfmot": ["export_qat", "to_tf_keras", "train_in_tf_keras"],
    "training": [
        "BatchBridgeout",
        "BridgePenalty",
        "BridgeoutSchedule",
        "BudgetGates",
        "FilterPruning",
        "GroupLasso",
        "PenaltySchedule",
        "PruningSchedule",
        "SensitivityScorer",
        "SoftPruning",
        "apply_bridgeout",
        "apply_filter_gates",
        "apply_filter_pruning",
        "apply_penalty",
        "distill",
        "exponential",
        "polynomial",
        "strip_wrappers",
    ],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'keras_filterprune' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"keras_filterprune.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
