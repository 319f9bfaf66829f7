"""Recovery without labels: the pruned network learns what the original computes on calibration inputs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import check_callable, check_flag, check_integer, check_number, check_returned, wrong
from keras_filterprune.distillation.distill import imitator
from keras_filterprune.errors import UnsupportedModelError
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.interrupts import interruptible
from keras_filterprune.probe.data import Samples, check_data
from keras_filterprune.probe.gradients import gradients
from keras_filterprune.probe.inputs import Inputs, calibration_inputs
from keras_filterprune.probe.normalization import fold_statistics, recalibrate
from keras_filterprune.progress import track
from keras_filterprune.rebuild.clone import Cloner, scope_of

# Chosen on training images of CIFAR-10.
STEPS, _RATE, _BATCH = 600, 2e-3, 128
# More often no sample is seen: it would be learnt by heart.
_PASSES = 43
# Of the distribution of a sample's share in a mixture.
_MIXING = 0.5
# Every so many samples one is held out, at most so many: looked at every so many steps, and never learnt from.
_HELD_OUT, _MOST_HELD_OUT, _LOOK = 8, 256, 60
# Samples below which nothing is learnt from them.
LEAST = 2 * _HELD_OUT
# Of the first distance; what is nearer by less may be so by chance.
_GAIN = 0.9
# Samples on which outputs are to have a gradient.
_LOOKED_AT = 8
# Steps at one rate.
_EPOCH = 10
_DISTANCE = "distillation_loss"


@dataclass(frozen=True)
class Recovery:
    """How a pruned network learns from the one that it came from.

    Attributes:
        steps: of the optimizer, at most (600); fewer where samples would be seen more than 43 times.
        seconds: at most (None: no limit). The rate falls to 0 by the end of whichever comes first.
        augment: `augment(batch)` returns other inputs like those of a batch, in the same form: an array
            (samples, ...), or a list with one per input of the model (None).
        seed: of the order of samples (0).
    """

    steps: int = STEPS
    seconds: float | None = None
    augment: Callable[[Any], Any] | None = None
    seed: int = 0

    def __post_init__(self):
        check_integer("steps", self.steps, "a number of optimizer steps")
        check_number("seconds", self.seconds, "a time limit", above=0, optional=True)
        check_callable("augment", self.augment, "a function of a batch of inputs", optional=True)
        check_integer("seed", self.seed, least=0)

    def attempt(self, student: keras.Model, teacher: keras.Model, data: Any, progress: bool = True) -> str:
        """`teach`, or why nothing is learnt, as the end of a sentence."""
        if len(calibration_inputs(data, view_model(student))) < LEAST:
            return f"; not taught by the original, which takes {LEAST} samples"
        try:
            return f", then {self.teach(student, teacher, data, progress)}"
        except UnsupportedModelError as error:
            return f"; not taught by the original: {error}"

    def teach(self, student: keras.Model, teacher: keras.Model, data: Any, progress: bool = True) -> str:
        """Train the student in place on what the teacher gives for calibration inputs.

        What held-out samples show to be best is what stays: the end, something on the way, or the start.

        Args:
            student: a functional or Sequential model; if it is compiled, its optimizer is not used.
            teacher: one with the same inputs and outputs; not modified.
            data: `Samples`, or whatever they are made of.
            progress: show a progress bar (True).

        Returns:
            What was done, in a sentence.
        """
        if any(tensor.dtype == "string" for tensor in student.inputs):
            raise UnsupportedModelError(f"'{student.name}' takes text. Put the layers that read it before the network.")
        inputs = calibration_inputs(data, view_model(student), least=LEAST)
        held_out = np.arange(0, len(inputs), max(_HELD_OUT, len(inputs) // _MOST_HELD_OUT))
        learnt = np.setdiff1d(np.arange(len(inputs)), held_out)
        size = _batch_size(inputs, min(_BATCH, len(learnt)))
        with scope_of(student):
            imitating = imitator(student, teacher, inputs.take(held_out[: max(2, size)]))
            keras.Model.compile(imitating, _optimizer(student))
            # Variables that are made while TensorFlow traces a step take two conditions each.
            imitating.optimizer.build(imitating.trainable_variables)
        _check_learnable(student, inputs)
        fold_statistics(student, inputs, progress)
        steps = min(self.steps, -(-_PASSES * len(learnt) // size))
        exam = _Batches(student, inputs, held_out, size)
        best, pace = _Best(imitating, exam), _Pace(steps, self.seconds, progress)
        with contextlib.closing(pace):
            imitating.fit(
                _Lessons(self, student, inputs, learnt, size),
                epochs=-(-steps // _EPOCH),
                validation_data=exam,
                validation_freq=_LOOK // _EPOCH,
                callbacks=[pace, best],
                verbose=0,
            )
        best.look()
        # Moving statistics are late by a hundred steps, and of augmented samples.
        recalibrate(student, inputs, progress)
        best.look()
        best.restore()
        return (
            f"{pace.steps} steps on {len(learnt)} samples; divergence from the original on {len(held_out)} others "
            f"{best.first:.3g} before, {best.best:.3g} after"
        )


def _check_learnable(student: keras.Model, inputs: Inputs) -> None:
    """Refuse a student of whose outputs none has a gradient: one-hot or rounded ones, say."""
    variables, batch = student.trainable_variables, _Batches(student, inputs, np.arange(_LOOKED_AT), _LOOKED_AT)[0][0]
    generator = np.random.default_rng(0)

    def total(values: dict[int, Any]) -> Any:
        with keras.StatelessScope(state_mapping=[(v, values[n]) for n, v in enumerate(variables)]):
            outputs = keras.tree.flatten(student(batch, training=False))
        found = [keras.ops.cast(z, "float32") for z in outputs if "float" in keras.backend.standardize_dtype(z.dtype)]
        drawn = [keras.ops.convert_to_tensor(generator.normal(size=tuple(z.shape)), "float32") for z in found]
        return sum(keras.ops.sum(z * weights) for z, weights in zip(found, drawn, strict=True))

    if not any(keras.ops.any(g != 0) for g in gradients(total, {n: v.value for n, v in enumerate(variables)}).values()):
        raise UnsupportedModelError(
            f"the outputs of '{student.name}' have no gradient: nothing can be learnt from them. Take those before, of "
            "scores."
        )


def _batch_size(inputs: Inputs, most: int) -> int:
    """Samples that are learnt at once, at most `most`; where memory decides, half of what fits: two networks run."""
    fits = inputs.differentiable(slice(most))[0].stop
    return fits if 2 * fits > most else max(1, fits // 2)


class _Batches(keras.utils.PyDataset):
    """Inputs alone, in the structure of a model's.

    Args:
        model: the model.
        inputs: samples.
        numbers: which of them.
        size: of a batch.
    """

    def __init__(self, model: keras.Model, inputs: Inputs, numbers: np.ndarray, size: int):
        super().__init__()
        self._model, self._inputs, self._numbers, self._size = model, inputs, numbers, size

    def __len__(self) -> int:
        return -(-len(self._numbers) // self._size)

    def __getitem__(self, index: int) -> tuple[Any]:
        return (self.packed(self._inputs.take(self._numbers[index * self._size :][: self._size])),)

    def packed(self, arrays: list[np.ndarray]) -> Any:
        """Flat inputs as the model takes them."""
        sequential = isinstance(self._model, keras.Sequential)
        return arrays[0] if sequential else keras.tree.pack_sequence_as(self._model.input, arrays)


class _Lessons(_Batches):
    """Batches in random order without end, `_EPOCH` of them at a time, augmented."""

    def __init__(self, recovery: Recovery, *args):
        super().__init__(*args)
        self._augment, self._generator = recovery.augment, np.random.default_rng(recovery.seed)
        self._left = np.zeros(0, int)

    def __len__(self) -> int:
        return _EPOCH

    def __getitem__(self, index: int) -> tuple[Any]:
        while len(self._left) < self._size:
            self._left = np.concatenate([self._left, self._generator.permutation(self._numbers)])
        now, self._left = np.split(self._left, [self._size])
        arrays = self._inputs.take(now)
        if self._augment is not None:
            arrays = _augmented(self._augment, arrays)
        if all(x.dtype.kind == "f" for x in arrays):
            arrays = _mixed(arrays, self._generator)
        return (self.packed(arrays),)


def _augmented(augment: Callable[[Any], Any], arrays: list[np.ndarray]) -> list[np.ndarray]:
    given = augment(arrays[0] if len(arrays) == 1 else arrays)
    found = [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(given)]
    shapes = [x.shape for x in arrays]
    check_returned([x.shape for x in found] == shapes, "augment", f"return inputs of shapes {shapes}", given)
    return [x.astype(old.dtype) for x, old in zip(found, arrays, strict=True)]


def _mixed(arrays: list[np.ndarray], generator: np.random.Generator) -> list[np.ndarray]:
    """Every sample with a share of another: there are as many as one wants, and the teacher knows what they are."""
    size = len(arrays[0])
    share, others = generator.beta(_MIXING, _MIXING, size), generator.permutation(size)
    mixed = []
    for x in arrays:
        own = share.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        mixed.append(own * x + (1 - own) * x[others])
    return mixed


class _Pace(keras.callbacks.Callback):
    """Brings the rate down to 0, and ends the training, by whichever limit comes first; shows how far it is."""

    def __init__(self, most: int, seconds: float | None, progress: bool):
        super().__init__()
        self._most, self._seconds, self.steps, self._start = most, seconds, 0, time.monotonic()
        self._percents = track(range(100), "recovering", 100, progress)
        self._shown = 0

    def _done(self) -> float:
        spent = 0.0 if self._seconds is None else (time.monotonic() - self._start) / self._seconds
        return min(1.0, max(spent, self.steps / self._most))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = _RATE * (1 + math.cos(math.pi * self._done())) / 2

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        done = self._done()
        for _ in zip(range(self._shown, int(100 * done)), self._percents, strict=False):
            self._shown += 1
        if done == 1:
            self.model.stop_training = True

    def close(self) -> None:
        """Take the progress bar away."""
        self._percents.close()


class _Best(keras.callbacks.Callback):
    """Remembers the weights with which the student was nearest to the teacher on held-out samples."""

    def __init__(self, imitating: keras.Model, exam: _Batches):
        super().__init__()
        self._imitating, self._exam, self._weights = imitating, exam, imitating.student.get_weights()
        self.first = self.best = math.inf
        self.look()
        self.first = self.best

    def look(self) -> None:
        """Measure as it is."""
        self._note(self._imitating.evaluate(self._exam, verbose=0, return_dict=True)[_DISTANCE])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if f"val_{_DISTANCE}" in logs:
            self._note(logs[f"val_{_DISTANCE}"])

    def _note(self, distance: float) -> None:
        if distance < min(self.best, _GAIN * self.first):
            self.best, self._weights = distance, self._imitating.student.get_weights()

    def restore(self) -> None:
        """Give the student those weights."""
        self._imitating.student.set_weights(self._weights)


def _optimizer(student: keras.Model) -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.Adam(_RATE)
    half = student.dtype_policy.name == "mixed_float16"
    return keras.optimizers.LossScaleOptimizer(optimizer) if half else optimizer


@interruptible()
def recover(
    model: keras.Model,
    original: keras.Model,
    data: Any,
    *,
    seconds: float | None = None,
    steps: int = STEPS,
    augment: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> keras.Model:
    """Recover accuracy after pruning without labels: the original teaches on calibration inputs.

    A few hundred steps of Adam on the squared difference of all outputs, of their logits where they are classes or
    single units (Ba and Caruana 2014), by a rate that falls as a cosine. Outputs count alike, whatever their units:
    differences are relative to how far the original's outputs for two samples are apart, times the output's weight if
    the model is compiled with some. Samples of numbers are mixed in pairs (Zhang et al. 2018), and the original says
    what the mixture is. Every eighth sample is held out: the weights that are nearest to the original there stay, be
    they those at the start. It does for the network as a whole what `LeastSquares` does layer by layer, and starts best
    from there.

    Args:
        model: a pruned functional or Sequential model. It is not modified.
        original: the network that it came from. It is not modified.
        data: inputs in any form that `prune_model` takes, of which the first 2 048 samples are read; labels are not
            looked at. Better those that the pruning was calibrated on than few.
        seconds: a time limit (None).
        steps: of the optimizer, with batches of 128 samples, or of fewer where these do not fit into memory (600); at
            most so many that a sample is seen 43 times.
        augment: `augment(batch)` returns inputs in the form of `batch`: an array (samples, ...), or a list with one per
            input of the model; flips and shifts for photographs, say (None).
        seed: seed of the order of samples (0).
        progress: a progress bar on stderr (True).

    Returns:
        A model like `model`, compiled like it if that was, with other weights.

    Raises:
        UnsupportedModelError: inputs or outputs of the two do not match, or nothing can be learnt.
        CalibrationDataError: there are fewer than 16 samples, or they do not fit.
        InvalidValueError: a number is out of range, or `augment` returns something else.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(3)]
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
        >>> x = np.random.default_rng(0).normal(size=(64, 8, 8, 3))
        >>> small = kfp.prune_model(model, "l2", 0.5, data=x)
        >>> recovered = kfp.recover(small, model, x, steps=20)
    """
    recovery = Recovery(steps, seconds, augment, seed)
    for name, given in (("model", model), ("original", original)):
        if not isinstance(given, keras.Model):
            raise wrong(name, given, "a keras.Model", UnsupportedModelError)
    check_flag("progress", progress)
    view, teacher, samples = view_model(model), analyze(original).model, Samples.of(data)
    check_data(samples, view)
    student = Cloner(view).result(model)
    recovery.teach(student, teacher, samples, progress)
    return student
