"""Times `.tflite` files on an Android phone with the official `benchmark_model`, through adb.

Three commands, with the phone plugged in and USB debugging switched on:

    curl -LO https://storage.googleapis.com/litert/binaries/latest/android_arm64/benchmark_model
    adb devices
    python -m tflite_bench android dense.tflite pruned.tflite --binary benchmark_model --taskset f0

The first fetches Google's program for LiteRT; the TensorFlow Lite program of the same name works too. The second must
list the phone as `device`. The third copies program and files to the phone, measures, and removes them again.
`--taskset` names the cores as a hexadecimal mask, here cores 4 to 7, which are the fast ones on many phones;
`core_max_mhz` in the JSON report shows which they are.
"""

from tflite_bench.android.benchmark import benchmark_on_android

__all__ = ["benchmark_on_android"]
