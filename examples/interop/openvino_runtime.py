"""OpenVINO reads .tflite files itself; in float32 here, as it may choose bfloat16 where the processor has it.

python -m venv openvino && openvino/bin/pip install openvino ai-edge-litert
openvino/bin/python examples/interop/openvino_runtime.py interop/
"""

from pathlib import Path

import numpy as np
import openvino as ov
from consumers import to_real, to_stored, try_files

# It keeps scales to itself: uint8 inputs are pixels here, and LiteRT says what the outputs' are.
PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}


def predict(path: Path, images: np.ndarray, classes: list[str]) -> np.ndarray:
    model = ov.Core().compile_model(path, "CPU", PRECISION)
    dtype = model.input(0).get_element_type().to_dtype()
    found = [model(to_stored(image[None].astype("float32"), 0, 0, dtype))[0][0] for image in images]
    return to_real(np.stack(found), *output_quantization(path))


def output_quantization(path: Path) -> tuple[float, int]:
    from ai_edge_litert.interpreter import Interpreter

    (returned,) = Interpreter(str(path)).get_output_details()
    return returned["quantization"] if returned["dtype"] != np.float32 else (0.0, 0)


if __name__ == "__main__":
    try_files("OpenVINO", "openvino", predict)
