"""LiteRT's CompiledModel, its interface for accelerators, here on the CPU.

python -m venv litert && litert/bin/pip install ai-edge-litert
litert/bin/python examples/interop/litert_compiled_model.py interop/
"""

from pathlib import Path

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter
from consumers import to_real, to_stored, try_files


def predict(path: Path, images: np.ndarray, classes: list[str]) -> np.ndarray:
    # It hands over bytes: what they mean is read by the interpreter.
    interpreter = Interpreter(str(path))
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    model = CompiledModel.from_file(str(path))
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    rows = []
    for image in images:
        inputs[0].write(to_stored(image[None].astype("float32"), *given["quantization"], given["dtype"]))
        model.run_by_index(0, inputs, outputs)
        found = outputs[0].read(len(classes), returned["dtype"])
        rows.append(to_real(found, *returned["quantization"]))
    return np.stack(rows)


if __name__ == "__main__":
    try_files("LiteRT CompiledModel", "ai-edge-litert", predict)
