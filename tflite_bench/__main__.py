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

from rich.console import RenderableType

from tflite_bench import android
from tflite_bench.arm import command as arm
from tflite_bench.bench import benchmark
from tflite_bench.command import carry_out
from tflite_bench.comparison import compare
from tflite_bench.errors import BenchError
from tflite_bench.files import write_json
from tflite_bench.plot import check_image_name
from tflite_bench.profiling import profile
from tflite_bench.runtimes import RUNTIMES

# Commands of their own: files are measured elsewhere.
_DEVICES = {"android": android.main, "arm": arm.main}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name (None: those of this process).

    Returns:
        Exit code: 0, or 2 with one line on stderr for bad input.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in _DEVICES:
        return _DEVICES[words[0]](words[1:])
    comparing = words[:1] == ["compare"]
    options = _compare_parser().parse_args(words[1:]) if comparing else _parser().parse_args(words)
    work = _compare if comparing else _profile if options.profile else _benchmark
    return carry_out("tflite_bench", options, work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tflite_bench",
        description=(
            "Time .tflite files against each other on this computer. 'compare A B' says whether one is faster, "
            "'android A B' times them on a phone, 'arm count A B' counts instructions on an emulated core."
        ),
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help=".tflite files; ratios refer to the first")
    _add_settings(parser, runs=100, rounds=5)
    parser.add_argument("--warmup", type=int, default=10, help="untimed runs of each file first (%(default)s)")
    parser.add_argument("--plot", metavar="PATH", help="also draw the latencies there (.png, .svg, .pdf)")
    parser.add_argument("--profile", action="store_true", help="time each operator of each file instead")
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tflite_bench compare", description="Say whether the second file is faster than the first."
    )
    parser.add_argument("files", nargs=2, metavar="FILE", help=".tflite file")
    _add_settings(parser, runs=200, rounds=20)
    return parser


def _add_settings(parser: argparse.ArgumentParser, runs: int, rounds: int) -> None:
    parser.add_argument("--threads", type=int, default=1, help="threads LiteRT computes with (%(default)s)")
    parser.add_argument("--runs", type=int, default=runs, help="timed runs of each file, in all (%(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="interleaved rounds (%(default)s)")
    parser.add_argument("--runtime", choices=RUNTIMES, default="interpreter", help="of LiteRT (%(default)s)")
    parser.add_argument(
        "--pin", action=argparse.BooleanOptionalAction, default=True, help="keep each thread on a core of its own"
    )
    parser.add_argument("--json", metavar="PATH", help="also write the result there")


def _benchmark(options: argparse.Namespace) -> list[RenderableType]:
    if options.plot:
        check_image_name(options.plot)
    report = benchmark(
        options.files,
        threads=options.threads,
        runs=options.runs,
        warmup=options.warmup,
        rounds=options.rounds,
        runtime=options.runtime,
        pin=options.pin,
        progress=True,
    )
    if options.json:
        report.save(options.json)
    if options.plot:
        report.plot(options.plot)
    return [report.table()]


def _compare(options: argparse.Namespace) -> list[RenderableType]:
    found = compare(
        *options.files,
        threads=options.threads,
        runs=options.runs,
        rounds=options.rounds,
        runtime=options.runtime,
        pin=options.pin,
        progress=True,
    )
    if options.json:
        found.save(options.json)
    return [str(found), *(f"- {note}" for note in found.notes)]


def _profile(options: argparse.Namespace) -> list[RenderableType]:
    if options.plot:
        raise BenchError("--plot draws latencies of files, leave it out with --profile")
    profiles = [profile(file, threads=options.threads, runs=options.runs, pin=options.pin) for file in options.files]
    if options.json:
        write_json(options.json, {"format": 1, "profiles": [found.to_dict() for found in profiles]})
    return [found.table() for found in profiles]


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # LiteRT's compiled models would announce their end on stderr.
    os._exit(status)
