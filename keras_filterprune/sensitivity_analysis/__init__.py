"""How much a model suffers when one group of filters is cut."""

from keras_filterprune.sensitivity_analysis.measure import sensitivity as sensitivity
from keras_filterprune.sensitivity_analysis.table import SensitivityTable as SensitivityTable
