"""Times `.tflite` files and single operators with LiteRT on this computer: interleaved rounds, honest spreads, JSON.

`tflite_bench.arm` counts instructions on an emulated Arm core instead.
"""

from tflite_bench.android import benchmark_on_android
from tflite_bench.bench import benchmark
from tflite_bench.comparison import Comparison, compare
from tflite_bench.errors import BenchError
from tflite_bench.one_op_model import operator_model
from tflite_bench.operators import Operator
from tflite_bench.operators_bench import time_operators
from tflite_bench.operators_report import OperatorReport, OperatorTiming
from tflite_bench.profiling import OperatorTime, Profile, profile
from tflite_bench.report import BenchReport, ModelTiming

__all__ = [
    "BenchError",
    "BenchReport",
    "Comparison",
    "ModelTiming",
    "Operator",
    "OperatorReport",
    "OperatorTime",
    "OperatorTiming",
    "Profile",
    "benchmark",
    "benchmark_on_android",
    "compare",
    "operator_model",
    "profile",
    "time_operators",
]
