"""Train networks as they were written, and opened: losses of two epochs, step by step the same.

    python examples/benchmarks/training_equality.py [--models unet swin] [--out DIR]

The networks are those of `model_coverage.py`, with random weights and without dropout, trained with SGD towards random
targets. The original is trained twice, from the same weights: what differs then draws random numbers, and is no row.
Ends with the table training_equality.md.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from model_coverage import build, networks, outputs, random_batch
from rows import append, read

import keras_filterprune as kfp

SAMPLES, BATCH, EPOCHS, RATE = 16, 4, 2, 0.01
MODELS = """
    autoencoder convmixer edsr eegnet external_attention gated_mlp keyword_spotting mlp_mixer mobilevit ocr
    residual_squeeze_excite text_transformer unet vision_transformer wavenet
""".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=[*networks()["examples"]], default=MODELS, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    path = options.out / "training_equality.json"
    for name in options.models:
        expected, again, received = (losses(made(name), opened) for opened in (False, False, True))
        row = {"model": name, "losses": expected, "opened": received}
        if again != expected:
            row["error"] = f"the original alone differs by {difference(expected, again):.1e}"
        append(row, path, "model")
        keras.utils.clear_session()
    (options.out / "training_equality.md").write_text(markdown(read(path)["rows"]))
    print(markdown(read(path)["rows"]))


def made(name: str) -> keras.Model:
    model = build(name, {}, Path())["_model"]
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model


def losses(model: keras.Model, opened: bool) -> list[float]:
    """The loss of every step of training, as it is or opened."""
    graph = kfp.open_model(model)
    trained, x = graph if opened else model, random_batch(graph, SAMPLES)
    y = [np.random.default_rng(2).normal(size=v.shape).astype("float32") for v in outputs(graph, x)]
    trained.compile(keras.optimizers.SGD(RATE), "mse")
    found = []
    for _ in range(EPOCHS):
        for start in range(0, SAMPLES, BATCH):
            part = [[v[start : start + BATCH] for v in values] for values in (x, y)]
            found.append(float(trained.train_on_batch(*(v if len(v) > 1 else v[0] for v in part))))
            trained.reset_metrics()
    return found


def difference(expected: list[float], received: list[float]) -> float:
    """The largest, relative to the loss."""
    return max(abs(a - b) / abs(a) for a, b in zip(expected, received, strict=True))


def markdown(rows: list[dict]) -> str:
    lines = ["| model | first loss | last loss | difference |", "|---|---:|---:|---:|"]
    for row in rows:
        found = row.get("error") or f"{difference(row['losses'], row['opened']):.1e}"
        lines.append(f"| {row['model']} | {row['losses'][0]:.5f} | {row['losses'][-1]:.5f} | {found} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
