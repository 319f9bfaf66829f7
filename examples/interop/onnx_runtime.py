"""ONNX Runtime, after tf2onnx has made ONNX files of the .tflite files.

    python -m venv onnx && onnx/bin/pip install onnxruntime tf2onnx tensorflow-cpu
    onnx/bin/python examples/interop/onnx_runtime.py interop/

Of the Keras model itself, `model.export("model.onnx", format="onnx")` makes a float32 file.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from consumers import to_real, try_files

OPSET = "17"


def predict(path: Path, images: np.ndarray, classes: list[str]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "model.onnx")
        command = [sys.executable, "-m", "tf2onnx.convert", "--opset", OPSET, "--tflite", path, "--output", target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    dtype = np.uint8 if given.type == "tensor(uint8)" else np.float32
    found = np.concatenate([session.run(None, {given.name: image[None].astype(dtype)})[0] for image in images])
    return to_real(found, *output_quantization(path))


def output_quantization(path: Path) -> tuple[float, int]:
    import tensorflow as tf

    (returned,) = tf.lite.Interpreter(str(path)).get_output_details()
    return returned["quantization"] if returned["dtype"] != np.float32 else (0.0, 0)


if __name__ == "__main__":
    try_files("ONNX Runtime", "onnxruntime", predict)
