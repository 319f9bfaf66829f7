"""What pruning would cost, measured before anything is pruned: by layer, and by bits and widths."""

from keras_filterprune.studies.bops import BopsTable as BopsTable
from keras_filterprune.studies.bops import bops_table as bops_table
from keras_filterprune.studies.sensitivity import sensitivity as sensitivity
from keras_filterprune.studies.sensitivity_table import SensitivityTable as SensitivityTable
