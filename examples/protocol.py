"""Dense, pruned, int8: what the examples of real tasks do with a network, the same for each.

The dense network is trained. Every way of pruning begins with it, and all results, the dense network among them, are
trained for the same number of further epochs. Networks and rows are kept: a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_filterprune as kfp
from tflite_bench import benchmark

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import rows

MODES = ("float32", "int8")


@dataclass(frozen=True)
class Task:
    """What a network is for.

    Attributes:
        name: of the files with results.
        network: makes an untrained one.
        batch: `batch(numbers, generator)` makes what `fit` takes of these training examples, varied at random.
        examples: how many there are.
        size: of a batch.
        loss: as `compile` takes it.
        samples: unlabelled training inputs, float32, to prune and to quantize with.
        inputs: those that are reported on, float32.
        score: `score(outputs)` of these, in percent, higher = better.
        metric: its name.
        ways: {name: what prunes the dense network; None for the dense one itself}.
    """

    name: str
    network: Callable[[], keras.Model]
    batch: Callable[[np.ndarray, np.random.Generator], tuple]
    examples: int
    size: int
    loss: Any
    samples: np.ndarray = field(repr=False)
    inputs: np.ndarray = field(repr=False)
    score: Callable[[Any], float]
    metric: str
    ways: dict[str, Callable[[keras.Model], keras.Model] | None]


class Protocol:
    """Runs a task.

    Args:
        task: the task.
        options: those of `parser`.
    """

    def __init__(self, task: Task, options: argparse.Namespace):
        self.task, self.options, self.out = task, options, Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.results = self.out / f"{task.name}.json"

    def run(self) -> dict[str, keras.Model]:
        """Fill the table, and give back the trained networks."""
        keras.utils.set_random_seed(0)
        dense = self._kept("first", lambda: self._trained(self.task.network(), self.options.epochs, self.options.rate))
        networks = {name: self._network(name, way, dense) for name, way in self.task.ways.items()}
        self._time()
        self.results.with_suffix(".md").write_text(self._table())
        print(self._table())
        return networks

    def file(self, name: str, mode: str) -> Path:
        """The `.tflite` file of a network."""
        return self.out / f"{_stem(name)}.{mode}.tflite"

    def _network(self, name: str, way: Callable[[keras.Model], keras.Model] | None, dense: keras.Model) -> keras.Model:
        start = time.perf_counter()
        small = self._kept("first") if way is None else self._kept(f"{name} pruned", lambda: way(dense))
        if "straight" not in (row := self._row(name)):
            seconds = round(time.perf_counter() - start)
            self._note(row, straight=self._score(small), prune_seconds=seconds)
        trained = self._kept(name, lambda: self._trained(small, self.options.tune_epochs, self.options.tune_rate))
        if "int8" not in (row := self._row(name)):
            self._note(row, **self._figures(name, trained))
        return trained

    def _kept(self, name: str, make: Callable[[], keras.Model] | None = None) -> keras.Model:
        """A network from its file, which is made first where there is none."""
        path = self.out / f"{_stem(name)}.keras"
        if make is not None and not path.exists():
            # A run that ends while it writes leaves no network that looks whole.
            unfinished = path.with_name("unfinished.keras")
            make().save(unfinished)
            unfinished.replace(path)
        return keras.models.load_model(path)

    def _trained(self, model: keras.Model, epochs: int, rate: float) -> keras.Model:
        batches = _Batches(self.task)
        schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
        model.compile(keras.optimizers.Adam(schedule), self.task.loss)
        going_on = keras.callbacks.BackupAndRestore(self.out / "interrupted", double_checkpoint=True)
        begin = keras.callbacks.LambdaCallback(on_epoch_begin=batches.begin)
        # Keras would give the batches in an order that depends on what was random before.
        model.fit(batches, epochs=epochs, callbacks=[going_on, begin], shuffle=False, verbose=2)
        return model

    def _score(self, model: keras.Model) -> float:
        return self.task.score(model.predict(self.task.inputs, batch_size=16, verbose=0))

    def _figures(self, name: str, model: keras.Model) -> dict[str, Any]:
        costs = kfp.budgets.CostModel(kfp.analyze(model))
        found = {"macs": costs.macs(costs.sizes), "params": model.count_params(), "trained": self._score(model)}
        for mode in MODES:
            # What integers cost stands in the table, however much it is.
            settings = {"data": self.task.samples[:200], "tolerance": 1.0 if mode == "int8" else None}
            result = kfp.export_tflite(model, self.file(name, mode), quantize=mode, overwrite=True, **settings)
            found[f"{mode}_bytes"] = result.bytes
        outputs = kfp.export.predict_tflite(self.file(name, "int8"), self.task.inputs)
        return found | {"int8": self.task.score(outputs), "int8_difference": result.relative_difference}

    def _time(self) -> None:
        """Enter the milliseconds of all files, measured in one interleaved benchmark."""
        files = {(name, mode): self.file(name, mode) for name in self.task.ways for mode in MODES}
        timed = benchmark(list(files.values()), runs=100, progress=True).models
        for (name, mode), timing in zip(files, timed, strict=True):
            self._note(self._row(name), **{f"{mode}_ms": timing.p50_ms})

    def _row(self, name: str) -> dict[str, Any]:
        known = {row["network"]: row for row in rows.read(self.results)["rows"]}
        return known.get(name, {"network": name})

    def _note(self, row: dict[str, Any], **figures: Any) -> None:
        print(row["network"], figures, flush=True)
        rows.append(row | figures, self.results, "network")

    def _table(self) -> str:
        measured = f"{self.task.metric} before | trained | int8"
        lines = [
            f"| network | MACs | params | {measured} | KB fp32 / int8 | ms fp32 / int8 |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in map(self._row, self.task.ways):
            cost = f"{row['macs'] / 1e6:.1f} M | {row['params'] / 1e3:.1f} k"
            scores = " | ".join(f"{row[key]:.1f}" for key in ("straight", "trained", "int8"))
            sizes = " / ".join(f"{row[f'{mode}_bytes'] / 1e3:.0f}" for mode in MODES)
            times = " / ".join(f"{row[f'{mode}_ms']:.2f}" for mode in MODES)
            lines.append(f"| {row['network']} | {cost} | {scores} | {sizes} | {times} |")
        epochs = f"{self.options.epochs} epochs, and {self.options.tune_epochs} more for each row"
        return "\n".join(lines) + f"\n\n{epochs}; one seed. Milliseconds: one thread, median.\n"


class _Batches(keras.utils.PyDataset):
    """Batches in another order in every epoch, whole ones alone; what is random depends on nothing before."""

    def __init__(self, task: Task):
        super().__init__()
        self._task = task
        self.begin(0)

    def begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._order = epoch, np.random.default_rng(epoch).permutation(self._task.examples)

    def __len__(self) -> int:
        # All batches are of one size, so that the training step is compiled once.
        return self._task.examples // self._task.size

    def __getitem__(self, index: int) -> tuple:
        numbers = self._order[index * self._task.size :][: self._task.size]
        return self._task.batch(numbers, np.random.default_rng([self._epoch, index]))


def parser(description: str, name: str, epochs: int, tune_epochs: int) -> argparse.ArgumentParser:
    """Options of every task; its own can be added."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data-dir", help="folder of the data (KFP_DATA_DIR)")
    found.add_argument("--epochs", type=int, default=epochs, help="of the dense network (%(default)s)")
    found.add_argument("--rate", type=float, default=2e-3, help="its first learning rate (%(default)s)")
    found.add_argument("--tune-epochs", type=int, default=tune_epochs, help="after pruning (%(default)s)")
    found.add_argument("--tune-rate", type=float, default=1e-3, help="the first learning rate then (%(default)s)")
    found.add_argument("--out", default=f"kfp-{name}", help="folder for the results (./%(default)s)")
    return found


def _stem(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")
