"""tflite-micro's interpreter, the one of microcontrollers, with its reference kernels.

python -m venv micro && micro/bin/pip install tflite-micro
micro/bin/python examples/interop/microcontroller.py interop/
"""

from pathlib import Path

import numpy as np
from consumers import to_real, to_stored, try_files
from tflite_micro import runtime


def quantization(details: dict) -> tuple[float, int]:
    found = details["quantization_parameters"]
    return (float(found["scales"][0]), int(found["zero_points"][0])) if len(found["scales"]) else (0.0, 0)


def predict(path: Path, images: np.ndarray, classes: list[str]) -> np.ndarray:
    interpreter = runtime.Interpreter.from_file(str(path))
    given, returned = interpreter.get_input_details(0), interpreter.get_output_details(0)
    rows = []
    for image in images:
        interpreter.set_input(to_stored(image[None].astype("float32"), *quantization(given), given["dtype"]), 0)
        interpreter.invoke()
        rows.append(to_real(interpreter.get_output(0), *quantization(returned)))
    return np.concatenate(rows)


if __name__ == "__main__":
    try_files("tflite-micro interpreter", "tflite-micro", predict)
