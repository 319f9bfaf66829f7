"""Bit operations: multiply-accumulates times the bits of weights and of activations, layer by layer."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

from keras_filterprune.checks import check_integer, check_names, did_you_mean, wrong
from keras_filterprune.cost.model import Polynomial
from keras_filterprune.errors import InvalidValueError, UnknownNameError

# Bits of every layer, or {layer name or glob: bits}; the first pattern that fits a layer counts.
Bits = int | dict[str, int]


def bits_by_layer(name: str, bits: Bits, layers: Iterable[str]) -> dict[str, int]:
    """{layer: its bits}; `name` is what messages call `bits`.

    Raises:
        UnknownNameError: a pattern fits no layer, or a layer no pattern.
    """
    layers = list(layers)
    if not isinstance(bits, dict):
        return dict.fromkeys(layers, bits)
    for pattern in bits:
        if not fnmatch.filter(layers, pattern):
            hint = did_you_mean(pattern, layers, f" There are: {', '.join(layers)}.")
            raise UnknownNameError(f"{name} names '{pattern}', which matches no layer that multiplies.{hint}")
    found = {layer: [number for pattern, number in bits.items() if fnmatch.fnmatch(layer, pattern)] for layer in layers}
    missing = [layer for layer, numbers in found.items() if not numbers]
    if missing:
        raise UnknownNameError(
            f"{name} says nothing about layers {', '.join(missing)}. Name them, or end with '*': bits of all others."
        )
    return {layer: numbers[0] for layer, numbers in found.items()}


def check_bits(name: str, bits: Any) -> None:
    """Raise `InvalidValueError` unless these are whole numbers from 2 to 32, one or one per pattern."""
    try:
        for number in bits.values() if isinstance(bits, dict) else [bits]:
            check_integer(name, number, least=2, most=32)
        check_names(name, bits if isinstance(bits, dict) else ())
    except InvalidValueError:
        raise wrong(name, bits, "a number of bits from 2 to 32, or {layer name or glob: bits}") from None


def bit_operations(macs: Polynomial, weight_bits: Bits, activation_bits: Bits) -> Polynomial:
    """Multiply-accumulates times the bits of both factors, as a function of the kept counts."""
    weights = bits_by_layer("weight_bits", weight_bits, macs.spending)
    activations = bits_by_layer("activation_bits", activation_bits, macs.spending)
    return macs * {layer: weights[layer] * activations[layer] for layer in macs.spending}
