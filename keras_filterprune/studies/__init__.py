"""What pruning costs, measured: by layer, by bits and widths, and at several sizes."""

from keras_filterprune.studies.bops import BopsTable, compare_bits
from keras_filterprune.studies.family import Family, FamilyRow, prune_family
from keras_filterprune.studies.innermost import innermost
from keras_filterprune.studies.sensitivity import measure_sensitivity
from keras_filterprune.studies.sensitivity_table import SensitivityTable

__all__ = [
    "BopsTable",
    "Family",
    "FamilyRow",
    "SensitivityTable",
    "compare_bits",
    "innermost",
    "measure_sensitivity",
    "prune_family",
]
