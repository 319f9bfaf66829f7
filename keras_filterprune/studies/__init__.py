"""What pruning would cost, measured before anything is pruned: by layer, and by bits and widths."""

from keras_filterprune.studies.bops import BopsTable as BopsTable
from keras_filterprune.studies.bops import compare_bits as compare_bits
from keras_filterprune.studies.sensitivity import measure_sensitivity as measure_sensitivity
from keras_filterprune.studies.sensitivity_table import SensitivityTable as SensitivityTable
