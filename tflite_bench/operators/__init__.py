"""Single operators as models of their own, and what they take."""

from tflite_bench.operators.model import operator_model
from tflite_bench.operators.operator import FIELDS_OF_KIND, Operator
from tflite_bench.operators.report import OperatorReport, OperatorTiming
from tflite_bench.operators.timing import time_operators

__all__ = ["FIELDS_OF_KIND", "Operator", "OperatorReport", "OperatorTiming", "operator_model", "time_operators"]
