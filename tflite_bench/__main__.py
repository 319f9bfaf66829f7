"""Command line: `python -m tflite_bench dense.tflite pruned.tflite --threads 1 --json out.json`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tflite_bench.bench import benchmark
from tflite_bench.errors import BenchError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after the program's name. Default: those of this process.

    Returns:
        Exit code: 0, or 2 with one line on stderr for bad input.
    """
    parser = argparse.ArgumentParser(prog="tflite_bench", description="Time .tflite files against each other.")
    parser.add_argument("files", nargs="+", metavar="FILE", help=".tflite files; ratios refer to the first")
    parser.add_argument("--threads", type=int, default=1, help="threads of the interpreter (%(default)s)")
    parser.add_argument("--runs", type=int, default=100, help="timed runs of each file, in all (%(default)s)")
    parser.add_argument("--warmup", type=int, default=10, help="untimed runs of each file first (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (%(default)s)")
    parser.add_argument("--json", metavar="PATH", help="also write the report there")
    options = parser.parse_args(arguments)
    try:
        if options.json and not Path(options.json).parent.is_dir():
            raise BenchError(f"--json {options.json}: the folder does not exist")
        report = benchmark(
            options.files,
            threads=options.threads,
            runs=options.runs,
            warmup=options.warmup,
            rounds=options.rounds,
            progress=True,
        )
        if options.json:
            report.save(options.json)
    except (BenchError, OSError) as error:
        sys.stderr.write(f"tflite_bench: {error}\n")
        return 2
    Console().print(report.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
