"""Times `.tflite` files and single operators with LiteRT on this computer: interleaved rounds, honest spreads, JSON.

`tflite_bench.arm` counts instructions on an emulated Arm core instead.
"""

from tflite_bench.android import benchmark_on_android
from tflite_bench.bench import benchmark
from tflite_bench.comparison import Comparison, compare
from tflite_bench.errors import BenchError
from tflite_bench.operators import Operator, OperatorReport, OperatorTiming, operator_model, time_operators
from tflite_bench.profiling import OperatorTime, Profile, profile
from tflite_bench.report import BenchReport, ModelTiming

__version__ = "0.1.0"

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
