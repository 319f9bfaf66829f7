"""Results as values and tables."""

from keras_filterprune.report.base import check_report_path as check_report_path
from keras_filterprune.report.graph_table import graph_dict as graph_dict
from keras_filterprune.report.graph_table import graph_tables as graph_tables
from keras_filterprune.report.layer_report import LayerReport as LayerReport
from keras_filterprune.report.layer_report import UnitRow as UnitRow
from keras_filterprune.report.prune_report import LayerRow as LayerRow
from keras_filterprune.report.prune_report import PruneReport as PruneReport
