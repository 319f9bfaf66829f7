"""`keras-filterprune latency`."""

from __future__ import annotations

import argparse

from keras_filterprune.commands.options import Answer, add_model, add_output, check_distinct, read_model

HELP = "write a table of what a model's operators take, for budgets of time"


def add_options(parser: argparse.ArgumentParser) -> None:
    """As `measure_latency` has them."""
    add_model(parser)
    add_output(parser, ".json")
    parser.add_argument("--quantize", choices=("float32", "int8"), default="float32", help="numbers (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads LiteRT computes with (%(default)s)")
    parser.add_argument("--device", metavar="CORE", help="count instructions of this Arm core instead, cortex-a76 say")


def run(options: argparse.Namespace) -> Answer:
    """Time the operators."""
    from keras_filterprune.files import check_destination
    from keras_filterprune.measuring import measure_latency

    check_distinct([options.model, options.output])
    check_destination(options.output, options.overwrite)
    model = read_model(options)
    settings = {"quantize": options.quantize, "threads": options.threads, "device": options.device}
    table = measure_latency(model, options.output, **settings)
    whole = table.predict(model)
    content = {"path": options.output, "device": table.device, "unit": table.unit, "whole_model": whole}
    return content, [
        f"{options.output}: {table.source}; the whole model is predicted to take {whole:,.4g} {table.unit}"
    ]
