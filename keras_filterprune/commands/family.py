"""`keras-filterprune family`."""

from __future__ import annotations

import argparse

from keras_filterprune.commands.data import add_data, read_data
from keras_filterprune.commands.options import Answer, add_model, read_model

HELP = "write a model at several sizes, each cut from the one before"


def add_options(parser: argparse.ArgumentParser) -> None:
    """As `prune_family` has them."""
    add_model(parser)
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="where to write keep-0.5.keras and so on"
    )
    parser.add_argument(
        "--keep",
        type=float,
        nargs="+",
        default=(0.75, 0.5, 0.35, 0.25),
        metavar="F",
        help="fractions of multiply-accumulates kept, falling (0.75 0.5 0.35 0.25)",
    )
    parser.add_argument("--method", default="auto", help="a method's name (%(default)s)")
    add_data(parser, "calibration inputs, with labels where the method needs them")
    parser.add_argument("--include", action="append", metavar="GLOB", help="prune these layers only (repeatable)")
    parser.add_argument("--exclude", action="append", metavar="GLOB", help="leave these layers whole (repeatable)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")


def run(options: argparse.Namespace) -> Answer:
    """Prune to several sizes; an interrupted family goes on."""
    from keras_filterprune.studies import prune_family

    model = read_model(options)
    family = prune_family(
        model,
        options.keep,
        options.method,
        data=read_data(options, model).data,
        folder=options.output,
        include=options.include,
        exclude=options.exclude,
        seed=options.seed,
    )
    return family.to_dict(), [family.table()]
