"""Train networks and what opening makes of them, side by side; then fine-tune what pruning leaves of them.

    KERAS_BACKEND=jax python examples/benchmarks/training_after_opening.py [--models unet swin] [--out DIR]

Networks: those of the files `example_*.py` beside this one, and text backbones of keras-hub where it is installed;
random weights, random data. Two epochs of SGD with momentum, the same batches in the
same order, with dropout, whose numbers come from seeds that are opened as well. "Difference" is that of the losses of
both epochs, relative to the original's, the larger one. The same network is then pruned to half of its
multiply-accumulates and trained towards the outputs of the original: losses of the first and the last of ten epochs.

Every row goes to training_after_opening.json at once; ends with training_after_opening.md.
"""

import argparse
import math
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import example_attention  # noqa: F401  (registers its networks)
import example_blocks  # noqa: F401
import example_sequences  # noqa: F401
import example_tables  # noqa: F401
import keras
import numpy as np
from collection_networks import TOKENS, hub_networks
from example_networks import NETWORKS
from rows import append, read

import keras_filterprune as kfp

SAMPLES, BATCH, EPOCHS, TUNED = 64, 16, 2, 10
OPEN_SIDE = {"float32": 64, "int32": TOKENS}
HUB = [f"keras-hub {name}" for name in ("Bert", "GPT2", "Whisper", "Mixtral", "SwinTransformer", "MobileNet")]
COLUMNS = ["model", "backend", "parameters", "loss, epoch 1", "loss, epoch 2", "difference", "pruned to", "fine-tuned"]
# Its class brings a training step.
UNTRAINED = ["variational_autoencoder"]


def main() -> None:
    hub = hub_networks()
    networks = {n: build for n, build in NETWORKS.items() if n not in UNTRAINED} | {n: hub[n] for n in HUB if n in hub}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=networks, metavar="NAME", default=list(networks))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    path = options.out / "training_after_opening.json"
    for name in options.models:
        keras.utils.set_random_seed(0)
        row = {"model": name, "backend": keras.backend.backend()} | compared(networks[name]()) | tuned(networks[name]())
        append(row, path, "model", "backend")
        print(line(row), flush=True)
        keras.utils.clear_session()
    path.with_suffix(".md").write_text(markdown(read(path)["rows"]))


def compared(model: keras.Model) -> dict:
    """Losses of the network and of the opened one."""
    graph = opened(model)
    x = inputs_of(graph.model)
    y = keras.tree.map_structure(noise, model.predict(x, verbose=0))
    losses = [trained(each, x, y, EPOCHS) for each in (model, graph.model)]
    row = {"parameters": model.count_params(), "losses": losses[0], "opened": losses[1]}
    # Such a model's own fit() leaves out what its opened form does in training.
    untold = [note for note in graph.view.notes if "has no argument `training`" in note]
    worst = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    # PyTorch's own, which Keras calls where all numbers are dropped alike, knows of no seed.
    unseeded = keras.backend.backend() == "torch" and any(type(c.op) is keras.layers.Dropout for c in graph.view.calls)
    words = "normalization not told" if untold else "dropout without a seed" if unseeded else None
    return row | {"difference": words or worst}


def noise(like: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).normal(size=like.shape).astype("float32")


def tuned(model: keras.Model) -> dict:
    """How a pruned network learns what the original gives: losses of the first and of the last epoch."""
    graph = opened(model)
    small = kfp.prune_model(graph.model, "l2", 0.5, progress=False)
    x = inputs_of(graph.model)
    y = keras.tree.map_structure(np.asarray, model.predict(x, verbose=0))
    first, *_, last = trained(small, x, y, TUNED)
    return {"kept": small.count_params() / model.count_params(), "first": first, "last": last}


def opened(model: keras.Model):
    """What `analyze` sees; where sides are open, with known ones."""
    graph = kfp.analyze(model)
    if not any(None in t.shape[1:] for t in graph.model.inputs):
        return graph
    specs = keras.tree.map_structure(lambda t: (None, *sides(t)), graph.model.input)
    return kfp.analyze(kfp.open_model(model, specs))


def sides(tensor: keras.KerasTensor) -> list[int]:
    return [n or OPEN_SIDE[tensor.dtype] for n in tensor.shape[1:]]


def inputs_of(model: keras.Model):
    """Random numbers, or words, in the structure of a model's inputs."""
    generator = np.random.default_rng(0)

    def made(tensor: keras.KerasTensor) -> np.ndarray:
        shape = (SAMPLES, *tensor.shape[1:])
        drawn = generator.normal(size=shape) if "float" in tensor.dtype else generator.integers(0, 2, shape)
        return drawn.astype(tensor.dtype)

    return keras.tree.map_structure(made, model.input)


def trained(model: keras.Model, x, y, epochs: int) -> list[float]:
    """Losses of epochs; the model is trained."""
    losses = keras.tree.map_structure(lambda _: keras.losses.MeanSquaredError(), y)
    model.compile(keras.optimizers.SGD(0.003, momentum=0.9), losses)
    fit = model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0)
    return [float(loss) for loss in fit.history["loss"]]


def markdown(rows: list[dict]) -> str:
    table = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "--:|" * (len(COLUMNS) - 2), *map(line, rows)]
    differences = [row["difference"] for row in rows if isinstance(row["difference"], float)]
    fallen = sum(row["last"] < row["first"] for row in rows)
    return "\n".join(
        [
            *table,
            "",
            f"Largest difference of {len(differences)} networks: {max(differences):.1e}. Fine-tuning lowers the loss "
            f"of {fallen} of {len(rows)} pruned networks, by a factor of "
            f"{math.exp(np.mean([math.log(row['first'] / row['last']) for row in rows])):.1f} (geometric mean).\n",
        ]
    )


def line(row: dict) -> str:
    difference = row["difference"] if isinstance(row["difference"], str) else f"{row['difference']:.1e}"
    losses = [f"{loss:.4f}" for loss in row["losses"]]
    cells = [row["model"], row["backend"], f"{row['parameters']:,}", *losses, difference, f"{row['kept']:.2f}"]
    return "| " + " | ".join([*cells, f"{row['first']:.2g} → {row['last']:.2g}"]) + " |"


if __name__ == "__main__":
    main()
