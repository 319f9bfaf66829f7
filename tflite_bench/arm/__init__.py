"""An Arm core without a phone: QEMU runs LiteRT's Arm kernels and counts instructions, which are not time."""

from tflite_bench.arm.counting import count_instructions, count_operators
from tflite_bench.arm.emulator import CORES, Count, Emulator, core_of
from tflite_bench.arm.prepare import cache_folder, setup
from tflite_bench.arm.report import (
    InstructionCount,
    InstructionReport,
    OperatorInstructionReport,
    OperatorInstructions,
)

__all__ = [
    "CORES",
    "Count",
    "Emulator",
    "InstructionCount",
    "InstructionReport",
    "OperatorInstructionReport",
    "OperatorInstructions",
    "cache_folder",
    "core_of",
    "count_instructions",
    "count_operators",
    "setup",
]
