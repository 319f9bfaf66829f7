"""Command line: `python -m keras_filterprune COMMAND`, or `keras-filterprune COMMAND`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from rich.console import Console

from keras_filterprune.checks import import_keras, visible
from keras_filterprune.commands import COMMANDS
from keras_filterprune.errors import FilterPruneError
from keras_filterprune.quiet import quiet
from keras_filterprune.version import __version__
from tflite_bench.command import printable

_OUT = Console()
_GOING_ON = "What writes a folder goes on when it is called again."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; without arguments, show what there is to be done.

    Args:
        arguments: the words after the program's name (None: those of this process).

    Returns:
        Exit code: 0; 2 with one line on stderr for bad input; 130 when interrupted.
    """
    printable()
    words = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    if not words:
        parser.print_help()
        return 0
    options = parser.parse_args(words)
    try:
        if options.run is not COMMANDS["bench"].run:
            _start_keras()
        with _warning_in_lines(parser.prog):
            content, shown = options.run(options)
    except (FilterPruneError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {visible(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; no file was left half-written. {_GOING_ON}\n")
        return 130
    if options.json:
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
        return 0
    for item in shown:
        if isinstance(item, str):
            # A sentence is one line, however long, and names in it may hold brackets.
            _OUT.print(visible(item), markup=False, highlight=False, soft_wrap=True)
        else:
            _OUT.print(item)
    return 0


@contextlib.contextmanager
def _warning_in_lines(name: str) -> Iterator[None]:
    """Warnings as a line each, without the code that they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *place: f"{name}: {visible(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _start_keras() -> None:
    """Import Keras without TensorFlow's start-up lines, which would drown the answer; some heed no setting."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet():
        import_keras()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keras-filterprune", description="Structured pruning for Keras 3.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        sub.set_defaults(run=command.run)
        sub.add_argument("--json", action="store_true", help="print JSON instead of tables")
        command.add_options(sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
