"""What the two official `benchmark_model` programs report: a binary result file or lines of text."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tflite_bench.errors import BenchError

# Message BenchmarkResult of LiteRT's benchmark_result.proto: field numbers of the parts and of the figures we read.
_LATENCY, _MISC = 2, 4
_AVERAGE_MS, _MIN_MS, _MEDIAN_MS, _INIT_MS = 1, 2, 5, 8
_NUM_RUNS = 2
# Wire types of protocol buffers that stand for a fixed number of bytes.
_FIXED_SIZE = {1: 8, 5: 4}
_VARINT, _LENGTH_DELIMITED = 0, 2

_NUMBER = r"[0-9.]+(?:e[+-]?[0-9]+)?"
_SUMMARY = re.compile(rf"Inference timings in us: Init: ({_NUMBER}), .*Inference \(avg\): ({_NUMBER})")
_PAIR = re.compile(rf"\b(count|curr|min|median)=({_NUMBER})")


@dataclass(frozen=True)
class PhoneBlock:
    """Consecutive runs of one model in one process of `benchmark_model`.

    Attributes:
        init_ms: time to open and prepare the model in ms.
        min_ms: fastest run in ms.
        mean_ms: mean run in ms.
        median_ms: median run in ms; None where an old program prints none.
        runs: number of timed runs.
    """

    init_ms: float
    min_ms: float
    mean_ms: float
    median_ms: float | None
    runs: int


def one_line(text: str, limit: int = 300) -> str:
    """Put the end of a program's output on one line.

    Args:
        text: the output.
        limit: number of characters kept, from the end.

    Returns:
        The text without line breaks; "no output" if it is empty.
    """
    line = " ".join(text.split())
    return (f"...{line[-limit:]}" if len(line) > limit else line) or "no output"


def read_result_file(content: bytes) -> PhoneBlock:
    """Read the file that `benchmark_model --result_file_path` writes.

    Args:
        content: the file, a `BenchmarkResult` in the binary format of protocol buffers.

    Returns:
        The figures.

    Raises:
        BenchError: the content is truncated or something else.

    Example:
        >>> read_result_file(bytes.fromhex("1214 0d00000040 150000c03f 2d00000040 4500008041 2202 1032"))
        PhoneBlock(init_ms=16.0, min_ms=1.5, mean_ms=2.0, median_ms=2.0, runs=50)
    """
    try:
        parts = dict(_fields(content))
        latency, misc = dict(_fields(parts[_LATENCY])), dict(_fields(parts[_MISC]))
        init, smallest, mean, median = (
            struct.unpack("<f", latency[field])[0] for field in (_INIT_MS, _MIN_MS, _AVERAGE_MS, _MEDIAN_MS)
        )
        block = PhoneBlock(init, smallest, mean, median, misc[_NUM_RUNS])
    except (KeyError, IndexError, TypeError, ValueError, struct.error) as error:
        start = content[:60]
        message = f"expected the result file of benchmark_model. Received: {len(content)} bytes, {start!r}."
        raise BenchError(message) from error
    return _checked(block, repr(block))


def read_text(text: str) -> PhoneBlock:
    """Read what the TensorFlow Lite `benchmark_model` prints.

    Args:
        text: its standard output.

    Returns:
        The figures.

    Raises:
        BenchError: the text ends before the summary or comes from another program; the message quotes its end.

    Example:
        >>> text = '''count=5 first=9 curr=9 min=8 max=9 avg=8.6 std=0 p5=8 median=9 p95=9
        ... count=50 first=2100 curr=2050 min=2000 max=2300 avg=2080.5 std=60 p5=2010 median=2070 p95=2200
        ... Inference timings in us: Init: 3500, First inference: 9, Warmup (avg): 8.6, Inference (avg): 2080.5'''
        >>> read_text(text)
        PhoneBlock(init_ms=3.5, min_ms=2.0, mean_ms=2.0805, median_ms=2.07, runs=50)
    """
    summary = _SUMMARY.search(text)
    # One such line after the warm-up, one after the timed runs.
    lines = [line for line in text.splitlines() if re.search(r"\bcount=\d", line)]
    if summary is None or len(lines) < 2:
        raise BenchError(
            f"expected the line 'Inference timings in us: ...' of benchmark_model. Received: {one_line(text)}"
        )
    values = {name: float(value) for name, value in _PAIR.findall(lines[-1])}
    # Runs that all took the same time are printed as "count=3 curr=7(all same)".
    smallest = values.get("min", values.get("curr", 0.0))
    median = values.get("median", None if "min" in values else smallest)
    init, mean = float(summary[1]), float(summary[2])
    block = PhoneBlock(
        init / 1e3, smallest / 1e3, mean / 1e3, None if median is None else median / 1e3, int(values["count"])
    )
    return _checked(block, one_line(text))


def _checked(block: PhoneBlock, source: str) -> PhoneBlock:
    if block.runs < 1 or not 0 < block.min_ms <= block.mean_ms * 1.001 < float("inf"):
        raise BenchError(f"benchmark_model reports no times of at least one run: {source}")
    return block


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a protocol buffer; numbers of fixed size and submessages come as bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield field, value
            continue
        if wire_type == _LENGTH_DELIMITED:
            size, position = _varint(message, position)
        else:
            size = _FIXED_SIZE[wire_type]
        if position + size > len(message):
            raise ValueError(f"field {field} is truncated")
        yield field, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
