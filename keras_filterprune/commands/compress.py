"""`keras-filterprune compress`."""

from __future__ import annotations

import argparse

from keras_filterprune.commands.data import add_data, read_data
from keras_filterprune.commands.options import Answer, add_budgets, add_model, read_budget, read_model

HELP = "make a small, fast file for a device: prune, recover, quantize, check, measure, report"


def add_options(parser: argparse.ArgumentParser) -> None:
    """As `compress` has them."""
    add_model(parser)
    add_data(parser, "inputs like those met in use, with labels for --accuracy-drop", required=True)
    parser.add_argument("--target", default="arm64", help="a device, such as pixel-8 or raspberry-pi-5 (%(default)s)")
    parser.add_argument("-o", "--output", default="compressed", metavar="FOLDER", help="where it goes (%(default)s)")
    add_budgets(parser).add_argument(
        "--accuracy-drop", type=float, metavar="F", help="accuracy that may be lost, 0.01 say"
    )
    parser.add_argument(
        "--integer-io", nargs="?", const=True, choices=("uint8",), help="integers in and out; uint8 for cameras"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")


def run(options: argparse.Namespace) -> Answer:
    """Compress the model; an interrupted run goes on."""
    from keras_filterprune.compression import compress

    model = read_model(options)
    read = read_data(options, model)
    made = compress(
        model,
        read.data,
        options.target,
        budget=read_budget(options, model),
        accuracy_drop=options.accuracy_drop,
        metadata=read.metadata(model),
        integer_io=options.integer_io,
        out=options.output,
        seed=options.seed,
    )
    beside = f"Beside it: {made.report.name}, {made.card.name}, {made.model.name} to train on."
    return made.to_dict(), [made.table(), *made.notes, beside]
