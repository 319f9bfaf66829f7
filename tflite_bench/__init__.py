"""Times `.tflite` files with the LiteRT runtime on this computer: interleaved rounds, honest spreads, JSON."""

from tflite_bench.bench import benchmark
from tflite_bench.report import BenchReport, ModelTiming
from tflite_bench.runner import BenchError

__all__ = ["BenchError", "BenchReport", "ModelTiming", "benchmark"]
