"""What pruning costs, measured: by layer, by bits and widths, and at several sizes."""

from keras_filterprune.studies.bops import BopsTable as BopsTable
from keras_filterprune.studies.bops import compare_bits as compare_bits
from keras_filterprune.studies.family import Family as Family
from keras_filterprune.studies.family import FamilyRow as FamilyRow
from keras_filterprune.studies.family import prune_family as prune_family
from keras_filterprune.studies.innermost import innermost as innermost
from keras_filterprune.studies.sensitivity import measure_sensitivity as measure_sensitivity
from keras_filterprune.studies.sensitivity_table import SensitivityTable as SensitivityTable
