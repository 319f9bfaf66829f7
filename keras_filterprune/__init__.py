"""Structured pruning for Keras 3: a model and a budget go in, a smaller ordinary Keras model comes out.

Start at `prune_model`; `analyze`, `plan_pruning` and `apply_plan` are its three steps. `compress` goes on, to a file
for a device. The parts that can be exchanged live in namespaces: `criteria`, `allocators`, `compensators`, `budgets`,
`handlers`; what trains, in `layers`, `regularizers` and `callbacks`. Keras is imported with the first name that needs
it, not with this package.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

import wrapt

from keras_filterprune.version import __version__ as __version__

if TYPE_CHECKING:
    from keras_filterprune import allocators as allocators
    from keras_filterprune import budgets as budgets
    from keras_filterprune import callbacks as callbacks
    from keras_filterprune import compensators as compensators
    from keras_filterprune import compression as compression
    from keras_filterprune import criteria as criteria
    from keras_filterprune import errors as errors
    from keras_filterprune import export as export
    from keras_filterprune import handlers as handlers
    from keras_filterprune import layer_pruning as layer_pruning
    from keras_filterprune import layers as layers
    from keras_filterprune import regularizers as regularizers
    from keras_filterprune import studies as studies
    from keras_filterprune import tfmot as tfmot
    from keras_filterprune.analysis import analyze as analyze
    from keras_filterprune.budgets import FiltersBudget as FiltersBudget
    from keras_filterprune.budgets import LatencyBudget as LatencyBudget
    from keras_filterprune.budgets import MacsBudget as MacsBudget
    from keras_filterprune.budgets import ParamsBudget as ParamsBudget
    from keras_filterprune.compression import compress as compress
    from keras_filterprune.distillation import distill as distill
    from keras_filterprune.distillation import recover as recover
    from keras_filterprune.errors import FilterPruneError as FilterPruneError
    from keras_filterprune.export import export_tflite as export_tflite
    from keras_filterprune.graph import ChannelGraph as ChannelGraph
    from keras_filterprune.handlers import register_handler as register_handler
    from keras_filterprune.latency import LatencyTable as LatencyTable
    from keras_filterprune.layer_pruning import prune_layers as prune_layers
    from keras_filterprune.measuring import measure_latency as measure_latency
    from keras_filterprune.methods import Method as Method
    from keras_filterprune.methods import list_methods as list_methods
    from keras_filterprune.methods import register_method as register_method
    from keras_filterprune.opening import open_model as open_model
    from keras_filterprune.pruning import apply_plan as apply_plan
    from keras_filterprune.pruning import plan_pruning as plan_pruning
    from keras_filterprune.pruning import prune_model as prune_model
    from keras_filterprune.rebuild import PruningPlan as PruningPlan
    from keras_filterprune.report import PruneReport as PruneReport
    from keras_filterprune.studies import measure_sensitivity as measure_sensitivity
    from keras_filterprune.studies import prune_family as prune_family
    from keras_filterprune.training import apply_bridgeout as apply_bridgeout
    from keras_filterprune.training import apply_filter_gates as apply_filter_gates
    from keras_filterprune.training import apply_filter_pruning as apply_filter_pruning
    from keras_filterprune.training import apply_penalty as apply_penalty
    from keras_filterprune.training import strip_wrappers as strip_wrappers

_NAMES = {
    "analysis": "analyze",
    "budgets": "FiltersBudget LatencyBudget MacsBudget ParamsBudget",
    "compression": "compress",
    "distillation": "distill recover",
    "errors": "FilterPruneError",
    "export": "export_tflite",
    "graph": "ChannelGraph",
    "handlers": "register_handler",
    "latency": "LatencyTable",
    "layer_pruning": "prune_layers",
    "measuring": "measure_latency",
    "methods": "Method list_methods register_method",
    "opening": "open_model",
    "pruning": "apply_plan plan_pruning prune_model",
    "rebuild": "PruningPlan",
    "report": "PruneReport",
    "studies": "measure_sensitivity prune_family",
    "training": "apply_bridgeout apply_filter_gates apply_filter_pruning apply_penalty strip_wrappers",
}
_NAMESPACES = (
    "allocators budgets callbacks compensators compression criteria errors export handlers layer_pruning layers"
    " regularizers studies tfmot"
).split()
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_MODULE_OF, *_NAMESPACES])

# Names that stood here before 0.1, and where they live now.
_MOVED = {
    name: f"{space}.{name}"
    for space, names in {
        "allocators": "Evolution Global Search Sensitivity Tolerance Uniform",
        "budgets": "BopsBudget CostModel RedundancyBudget",
        "callbacks": "BridgeoutSchedule BudgetGates PenaltySchedule PruningSchedule SensitivityScorer SoftPruning"
        " exponential polynomial",
        "compensators": "Adapters BNRecalibration LeastSquares Linear MeanShift Merge",
        "criteria": "APoZ BNScale CaP Dead Energy FPGM FPOMP Genetic GeometricMean L1 L2 LRF MeanActivation Nystrom"
        " OperatorNorm OutputPursuit Random Similarity Taylor",
        "errors": "CalibrationDataError ExportError InfeasibleBudgetError PlanMismatchError SurgeryError"
        " UnknownNameError UnsupportedLayerError UnsupportedModelError",
        "export": "ExportResult Metadata predict_tflite read_metadata",
        "handlers": "Handler",
        "layer_pruning": "Ensemble Imprinting LayerReport",
        "layers": "BatchBridgeout FilterPruning",
        "regularizers": "BridgePenalty GroupLasso",
        "studies": "BopsTable SensitivityTable",
        "tfmot": "export_qat to_tf_keras train_in_tf_keras",
    }.items()
    for name in names.split()
} | {
    "GateTaylor": "criteria.TaylorGate",
    "bops_table": "studies.compare_bits",
    "sensitivity": "measure_sensitivity",
}


def _module(name: str) -> Any:
    if name != "errors":
        from keras_filterprune.checks import import_keras

        import_keras()
    return importlib.import_module(f"keras_filterprune.{name}")


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return _module(name)
    if name in _MODULE_OF:
        value = getattr(_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value
    if name in _MOVED:
        warnings.warn(f"kfp.{name} is kfp.{_MOVED[name]} now.", DeprecationWarning, stacklevel=2)
        space, _, new = _MOVED[name].rpartition(".")
        return getattr(__getattr__(space) if space else importlib.import_module(__name__), new)
    raise AttributeError(f"module 'keras_filterprune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]


_SAVED = {
    "layers": "BatchBridgeout BranchGate FilterPruning",
    "opening": "AddedLoss Constant PerSample Weight WeightedSum",
    "regularizers": "BridgePenalty GroupLasso",
}


class _Saved:
    """Stands in Keras' table of custom objects for a class that files name, until one is loaded."""

    def __init__(self, module: str, name: str):
        self._module, self.__name__ = module, name

    def from_config(self, config: dict[str, Any]) -> Any:
        return getattr(importlib.import_module(f"keras_filterprune.{self._module}"), self.__name__).from_config(config)


@wrapt.when_imported("keras")
def _register_saved_classes(keras: Any) -> None:
    """Models with our layers and regularizers load after `import keras_filterprune` alone.

    Keras never imports the modules that a file names, and importing ours here would be a circle.
    """
    for module, names in _SAVED.items():
        for name in names.split():
            keras.saving.get_custom_objects().setdefault(f"keras_filterprune>{name}", _Saved(module, name))
