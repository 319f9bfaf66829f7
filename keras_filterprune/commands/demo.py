"""`keras-filterprune demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from keras_filterprune.commands.options import Answer

HELP = "train, prune, fine-tune, export and benchmark a small network, offline"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where its files go."""
    parser.add_argument("--out", default="kfp-demo", help="folder for the results (./%(default)s)")


def run(options: argparse.Namespace) -> Answer:
    """Run the demo."""
    from keras_filterprune.demo import run_demo

    report, table = run_demo(Path(options.out))
    files = ", ".join(sorted(path.name for path in Path(options.out).iterdir()))
    return report, [table, f"files: {files} in {options.out}/"]
