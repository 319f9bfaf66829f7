"""What makes a `.tflite` file slow on a phone's CPU, which Keras layer causes it, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from keras_filterprune.export.file_operators import FileOperator

# Where int8 data meets operators that compute in float32, and where inputs and outputs are float32.
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True)
class ExportWarning:
    """Operators of a file that cost more than they have to.

    Attributes:
        operators: TFLite names of the operators.
        layers: the Keras layers that they come from.
        problem: what is wrong with them.
        remedy: what to do about it.
    """

    operators: tuple[str, ...]
    layers: tuple[str, ...]
    problem: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values.

        Returns:
            A dict of lists and strings.
        """
        return asdict(self) | {"operators": list(self.operators), "layers": list(self.layers)}

    def __str__(self) -> str:
        shown = ", ".join(self.layers[:3]) + (f" and {len(self.layers) - 3} more" if len(self.layers) > 3 else "")
        return f"{' '.join((*self.operators, f'({shown})'))}: {self.problem}. {self.remedy}"


@dataclass(frozen=True)
class _Rule:
    """One kind of trouble: operators that fit it, unless an earlier rule has taken them."""

    fits: Callable[[FileOperator], bool]
    problem: str
    remedy: str


_UNFOLDED = _Rule(
    lambda op: op.kind in ("MUL", "ADD", "SUB") and op.layer_class == "BatchNormalization",
    "batch normalization that follows no convolution stays an operator of its own",
    "Put it directly behind the convolution, where it costs nothing (int8: up to 1.6x the convolution's time).",
)
_PAD = _Rule(
    lambda op: op.kind in ("PAD", "PADV2", "MIRROR_PAD") and not op.folded,
    "the whole tensor is copied to enlarge it",
    "Use padding='same' in the layer behind it where that computes the same.",
)


def _left_by_xnnpack(kind: str) -> Callable[[FileOperator], bool]:
    return lambda op: not op.delegated and op.kind == kind


_NEVER_DELEGATED = {
    "HARD_SWISH": (
        "XNNPACK does not take it in int8: about 3.6x the time of the convolution before it",
        "Export with keep_float=('HARD_SWISH',), or train with relu6 or silu.",
    ),
    "TILE": (
        "XNNPACK does not take it; nearest upsampling repeats rows with it",
        "Use UpSampling2D(interpolation='bilinear'), one operator that XNNPACK takes.",
    ),
    "GATHER": ("XNNPACK does not take it, it splits the graph", "Reorder the weights instead of the channels."),
    "SOFTMAX": ("XNNPACK does not take it in int8", "End the model at the logits; the highest class is the same."),
}
_LAYER_NORM = _Rule(
    lambda op: op.layer_class in ("LayerNormalization", "GroupNormalization") and (op.is_float or not op.delegated),
    "XNNPACK or the quantizer does not take parts of this normalization in int8",
    "Name these layers in keep_float, or train with BatchNormalization.",
)
_DYNAMIC = _Rule(
    lambda op: not op.delegated and op.kind in ("SHAPE", "PACK"),
    "sizes are computed at run time because of the open batch size",
    "Export without dynamic_batch.",
)
_FLOAT_ISLAND = _Rule(
    lambda op: op.is_float and op.kind not in _CONVERSIONS,
    "computed in float32, because the quantizer has no integers for it",
    "Replace the layer if this is where the time goes.",
)
_HYBRID = _Rule(
    lambda op: not op.delegated and op.kind in ("DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "BATCH_MATMUL"),
    "XNNPACK does not take it with int8 weights and float32 activations",
    "Use quantize='int8', or 'float16' if there is no calibration data.",
)
_NOT_DELEGATED = _Rule(
    lambda op: not op.delegated and op.kind not in _CONVERSIONS,
    "XNNPACK does not take it, LiteRT's slower kernels compute it",
    "Measure the file; replace the layer if this is where the time goes.",
)


def advise(
    operators: Sequence[FileOperator], mode: str, kept_float: Sequence[FileOperator] = ()
) -> list[ExportWarning]:
    """Say what is slow in a file.

    Args:
        operators: the operators of the file.
        mode: what the file was exported as.
        kept_float: operators that stay in float32 at the user's wish.

    Returns:
        One warning per kind of trouble, in a fixed order; empty for a file that XNNPACK computes whole.
    """
    if mode == "int16x8":
        return [_whole_file_is_slow(operators)]
    rules = [_UNFOLDED, _PAD, _DYNAMIC] + ([_LAYER_NORM] if mode == "int8" else [])
    rules += [_Rule(_left_by_xnnpack(kind), problem, remedy) for kind, (problem, remedy) in _NEVER_DELEGATED.items()]
    rules += {"int8": [_NOT_DELEGATED, _FLOAT_ISLAND], "dynamic": [_HYBRID, _NOT_DELEGATED]}.get(mode, [_NOT_DELEGATED])
    left = [op for op in operators if (op.kind, op.output) not in {(kept.kind, kept.output) for kept in kept_float}]
    warnings = []
    for rule in rules:
        hit = [op for op in left if rule.fits(op)]
        left = [op for op in left if not rule.fits(op)]
        if hit:
            warnings.append(_warning(hit, rule.problem, rule.remedy))
    return warnings


def _whole_file_is_slow(operators: Sequence[FileOperator]) -> ExportWarning:
    slow = [op for op in operators if not op.delegated and op.kind not in _CONVERSIONS]
    return _warning(
        slow,
        "XNNPACK takes no int16 activations: tens to hundreds of times the time of int8 on a CPU",
        "Use quantize='int8' or 'dynamic', unless the file is for an accelerator that computes in int16.",
    )


def _warning(operators: Sequence[FileOperator], problem: str, remedy: str) -> ExportWarning:
    return ExportWarning(
        operators=tuple(sorted({op.kind for op in operators})),
        layers=tuple(dict.fromkeys(op.place for op in operators)),
        problem=problem,
        remedy=remedy,
    )
