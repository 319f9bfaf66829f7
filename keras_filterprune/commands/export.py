"""`keras-filterprune export`."""

from __future__ import annotations

import argparse

from keras_filterprune.commands.data import add_data, read_data
from keras_filterprune.commands.options import Answer, add_model, add_output, check_distinct, read_model

HELP = "write a .tflite file and check it against the model"


def add_options(parser: argparse.ArgumentParser) -> None:
    """As `export_tflite` has them."""
    add_model(parser)
    add_output(parser, ".tflite")
    parser.add_argument(
        "--quantize",
        choices=("float32", "float16", "dynamic", "int8", "int16x8"),
        default="float32",
        help="numbers of weights and activations (%(default)s)",
    )
    add_data(parser, "calibration inputs, needed for int8 and int16x8")
    parser.add_argument(
        "--keep-float",
        action="append",
        default=[],
        metavar="NAME",
        help="operator, such as HARD_SWISH, or layer that int8 and int16x8 leave in float32 (repeatable)",
    )
    parser.add_argument(
        "--integer-io",
        nargs="?",
        const=True,
        default=False,
        choices=("uint8",),
        help="integer inputs and outputs for int8 and int16x8; uint8 for cameras and MediaPipe",
    )
    parser.add_argument("--dynamic-batch", action="store_true", help="leave the batch size open instead of 1")
    parser.add_argument("--tolerance", type=float, help="largest accepted relative difference from Keras (per mode)")


def run(options: argparse.Namespace) -> Answer:
    """Write the file."""
    from keras_filterprune.export import export_tflite

    check_distinct([options.model, options.data, options.output])
    model = read_model(options)
    result = export_tflite(
        model,
        options.output,
        quantize=options.quantize,
        data=read_data(options, model).inputs,
        keep_float=options.keep_float,
        integer_io=options.integer_io,
        dynamic_batch=options.dynamic_batch,
        tolerance=options.tolerance,
        overwrite=options.overwrite,
    )
    return result.to_dict(), [result.summary()]
