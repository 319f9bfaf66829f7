"""Results as values and tables."""

from keras_filterprune.report.graph_table import graph_dict as graph_dict
from keras_filterprune.report.graph_table import graph_tables as graph_tables
from keras_filterprune.report.removed_layers import LayerReport as LayerReport
from keras_filterprune.report.removed_layers import UnitRow as UnitRow
from keras_filterprune.report.result import LayerRow as LayerRow
from keras_filterprune.report.result import PruneReport as PruneReport
from keras_filterprune.report.saving import check_report_path as check_report_path
