"""Devices by name: which widths their kernels compute whole, which numbers they are fastest with, what stands in."""

from __future__ import annotations

from dataclasses import dataclass, replace

from keras_filterprune.cost import TARGETS, Tiles

_ANDROID = (
    "`python -m tflite_bench android original.tflite model.tflite --binary benchmark_model` times both, through adb."
)
_LINUX = (
    "Copy both files and the folder of `tflite_bench` there, `pip install ai-edge-litert rich`, and time them: `python "
    "-m tflite_bench original.tflite model.tflite`."
)
_MICRO = "`xxd -i model.tflite > model.h` makes it a part of the program that the tflite-micro interpreter runs."
_COUNTED = "instructions counted under emulation, XNNPACK's source"


@dataclass(frozen=True)
class Device:
    """What is known of a device that files are made for.

    Attributes:
        chip: which processor, and its cores.
        widths: counts of channels that its kernels compute in whole steps; a group of less than two steps may keep any.
        core: the core of `tflite_bench.arm.CORES` that stands for it (None: there is none).
        here: this computer may stand for it, so that milliseconds measured here say something.
        quantize: the numbers that it is fastest with, as `export_tflite` takes them.
        otherwise: the numbers where those lose accuracy.
        integer_io: whether programs there hand over integers, as `export_tflite` takes it.
        source: how the widths are known.
        usage: what to do with the file, in a sentence.

    Example:
        >>> import keras_filterprune as kfp
        >>> device = kfp.compression.list_devices()["raspberry-pi-5"]
        >>> device.chip, str(device.widths), device.core
        ('BCM2712: Cortex-A76', 'multiples of 16 in groups of 32 or more', 'cortex-a76')
    """

    chip: str
    widths: Tiles
    core: str | None
    usage: str
    source: str = _COUNTED
    here: bool = False
    quantize: str = "int8"
    otherwise: str = "float16"
    integer_io: bool = False


def _steps(target: str) -> Tiles:
    """Of a target's kernels; one step is too much to lose where there are not two."""
    tiles = TARGETS[target]
    return replace(tiles, narrow=2 * tiles.step)


# Chips as their makers name them. The int8 dot product came with Cortex-A55 and A75.
_DOT, _PLAIN = _steps("arm64-dotprod-int8"), _steps("arm64-int8")
DEVICES = {
    "android": Device("phones since about 2019: Cortex-A55, A76 and later", _DOT, "cortex-a76", _ANDROID),
    "pixel-6": Device("Google Tensor: Cortex-X1, A76, A55", _DOT, "cortex-a76", _ANDROID),
    "pixel-8": Device("Google Tensor G3: Cortex-X3, A715, A510", _DOT, "cortex-a76", _ANDROID),
    "galaxy-s23": Device("Snapdragon 8 Gen 2: Cortex-X3, A715, A710, A510", _DOT, "cortex-a76", _ANDROID),
    "raspberry-pi-5": Device("BCM2712: Cortex-A76", _DOT, "cortex-a76", _LINUX),
    "raspberry-pi-4": Device("BCM2711: Cortex-A72", _PLAIN, "cortex-a72", _LINUX),
    "raspberry-pi-3": Device("BCM2837: Cortex-A53", _PLAIN, "cortex-a53", _LINUX),
    "raspberry-pi-zero-2": Device("RP3A0: Cortex-A53", _PLAIN, "cortex-a53", _LINUX),
    "arm64": Device("any 64-bit Arm core: 16 fits those with and without the dot product", _DOT, "cortex-a76", _LINUX),
    "arm32": Device("32-bit Arm cores with NEON", _steps("arm32"), None, _LINUX, "XNNPACK's source"),
    "cortex-m": Device(
        "microcontrollers: Cortex-M4, M7, M33, M55",
        Tiles(4),
        None,
        _MICRO,
        "CMSIS-NN multiplies four int8 values at a time (Lai et al. 2018)",
        otherwise="float32",
        integer_io=True,
    ),
    "x86": Device(
        "x86-64 with AVX-512 or AVX2", _steps("x86-avx512-int8"), None, _LINUX, "timed on AVX-512", here=True
    ),
}


def list_devices() -> dict[str, Device]:
    """What `compress` makes files for, by name.

    Returns:
        A `Device` for each name that `target=` takes.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.compression.list_devices()["cortex-m"].integer_io
        True
    """
    return dict(DEVICES)
