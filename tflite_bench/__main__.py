"""Command line.

python -m tflite_bench dense.tflite pruned.tflite --threads 2 --json out.json --plot out.png
python -m tflite_bench compare dense.tflite pruned.tflite
python -m tflite_bench pruned.tflite --profile
python -m tflite_bench android dense.tflite pruned.tflite --binary benchmark_model
python -m tflite_bench arm count dense.tflite pruned.tflite
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import tflite_bench
from tflite_bench.android import command as android
from tflite_bench.arm import command as arm
from tflite_bench.bench import benchmark
from tflite_bench.command import Answer, add_files, add_runs, carry_out
from tflite_bench.comparison import compare
from tflite_bench.errors import BenchError
from tflite_bench.plot import check_image_name
from tflite_bench.profiling import profile
from tflite_bench.runtimes import RUNTIMES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name (None: those of this process).

    Returns:
        Exit code: 0; 2 with one line on stderr for bad input; 130 when interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Files come without a command, so these are no commands of the parser.
    commands = {"android": android.main, "arm": arm.main, "compare": _compare_files}
    if words and words[0] in commands:
        return commands[words[0]](words[1:])
    return carry_out(_parser(), words, lambda options: (_profile if options.profile else _benchmark)(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tflite_bench",
        description=(
            "Time .tflite files against each other on this computer. 'compare A B' says whether one is faster, "
            "'android A B' times them on a phone, 'arm count A B' counts instructions on an emulated core."
        ),
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {tflite_bench.__version__}")
    add_files(parser)
    _add_settings(parser, runs=100, rounds=5)
    parser.add_argument("--warmup", type=int, default=10, help="untimed runs of each file first (%(default)s)")
    parser.add_argument("--plot", metavar="PATH", help="also draw the latencies there (.png, .svg, .pdf)")
    parser.add_argument("--profile", action="store_true", help="time each operator of each file instead")
    return parser


def _add_settings(parser: argparse.ArgumentParser, runs: int, rounds: int) -> None:
    add_runs(parser, runs, rounds)
    parser.add_argument("--runtime", choices=RUNTIMES, default="interpreter", help="of LiteRT (%(default)s)")
    parser.add_argument(
        "--pin", action=argparse.BooleanOptionalAction, default=True, help="keep each thread on a core of its own"
    )


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("threads", "runs", "rounds", "runtime", "pin")
    return {name: getattr(options, name) for name in names} | {"progress": True}


def _benchmark(options: argparse.Namespace) -> Answer:
    if options.plot:
        check_image_name(options.plot)
    report = benchmark(options.files, warmup=options.warmup, **_settings(options))
    if options.plot:
        report.plot(options.plot)
    return report.to_dict(), [report.table()]


def _profile(options: argparse.Namespace) -> Answer:
    if options.plot:
        raise BenchError("--plot draws latencies of files, leave it out with --profile")
    profiles = [profile(file, threads=options.threads, runs=options.runs, pin=options.pin) for file in options.files]
    content = {"format": 1, "profiles": [found.to_dict() for found in profiles]}
    return content, [found.table() for found in profiles]


def _compare_files(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tflite_bench compare", description="Say whether the second file is faster than the first."
    )
    add_files(parser, nargs=2)
    _add_settings(parser, runs=200, rounds=20)
    return carry_out(parser, arguments, _compare)


def _compare(options: argparse.Namespace) -> Answer:
    found = compare(*options.files, **_settings(options))
    return found.to_dict(), [str(found), *(f"- {note}" for note in found.notes)]


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # LiteRT's compiled models would announce their end on stderr.
    os._exit(status)
