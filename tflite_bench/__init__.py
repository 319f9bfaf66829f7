"""Times `.tflite` files and single operators with LiteRT on this computer: interleaved rounds, honest spreads, JSON.

`tflite_bench.arm` counts instructions on an emulated Arm core instead.
"""

from tflite_bench.bench import benchmark
from tflite_bench.one_op_model import operator_model
from tflite_bench.operators import Operator
from tflite_bench.operators_bench import time_operators
from tflite_bench.operators_report import OperatorReport, OperatorTiming
from tflite_bench.report import BenchReport, ModelTiming
from tflite_bench.runner import BenchError

__all__ = [
    "BenchError",
    "BenchReport",
    "ModelTiming",
    "Operator",
    "OperatorReport",
    "OperatorTiming",
    "benchmark",
    "operator_model",
    "time_operators",
]
