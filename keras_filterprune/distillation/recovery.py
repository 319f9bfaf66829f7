"""Recovery without labels: the pruned network learns what the original computes on calibration inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import check_callable, check_flag, check_integer, check_number, wrong
from keras_filterprune.distillation.distill import imitator
from keras_filterprune.distillation.exam import LEAST, Exam, held_out
from keras_filterprune.distillation.lessons import EPOCH, Lessons
from keras_filterprune.distillation.pace import RATE, STEPS, Pace
from keras_filterprune.errors import UnsupportedModelError
from keras_filterprune.graph.keras_view import packed, view_model
from keras_filterprune.interrupts import interruptible
from keras_filterprune.probe.data import Samples, check_data
from keras_filterprune.probe.gradients import gradients
from keras_filterprune.probe.inputs import Inputs, calibration_inputs
from keras_filterprune.probe.normalization import fold_statistics, recalibrate
from keras_filterprune.rebuild.clone import Cloner, scope_of

_BATCH = 128
# More often no sample is seen: it would be learnt by heart.
_PASSES = 43
# Samples on which outputs are to have a gradient.
_LOOKED_AT = 8


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

        What held-out samples show to be best is what stays: the end, something on the way, or the start; see `Exam`.

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
        view = view_model(student)
        inputs = calibration_inputs(data, view, least=LEAST)
        learnt = np.setdiff1d(np.arange(len(inputs)), held_out(len(inputs)))
        size = _batch_size(inputs, min(_BATCH, len(learnt)))
        with scope_of(student):
            imitating = imitator(student, teacher, inputs.take(learnt[: max(2, size)]))
            keras.Model.compile(imitating, _optimizer(student))
            # Variables that are made while TensorFlow traces a step take two conditions each.
            imitating.optimizer.build(imitating.trainable_variables)
        _check_learnable(student, inputs)
        steps = min(self.steps, -(-_PASSES * len(learnt) // size))
        lessons = Lessons(student, inputs, learnt, size, self.augment, self.seed)
        exam, pace = Exam(imitating, inputs, size), Pace(steps, self.seconds, progress)
        with contextlib.closing(pace):
            # Mixtures vary less than samples: what was learnt of them is spoilt by statistics of samples as they are.
            fold_statistics(student, calibration_inputs(lessons.samples(), view), progress)
            imitating.fit(lessons, epochs=-(-steps // EPOCH), callbacks=[pace, exam], verbose=0)
        exam.look()
        # Moving statistics are late by a hundred steps.
        recalibrate(student, calibration_inputs(lessons.samples(), view), progress)
        exam.look()
        return f"{pace.steps} steps on {len(learnt)} samples; {exam.restore()}"


def _check_learnable(student: keras.Model, inputs: Inputs) -> None:
    """Refuse a student of whose outputs none has a gradient: one-hot or rounded ones, say."""
    variables, batch = student.trainable_variables, packed(student, inputs.take(np.arange(_LOOKED_AT)))
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


def _optimizer(student: keras.Model) -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.Adam(RATE)
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
    what the mixture is; batch normalization gets the statistics of mixtures. Every eighth sample is held out: the
    weights that are nearest to the original there stay, and those at the start unless others are nearer by more than
    two standard errors. It does for the network as a whole what `LeastSquares` does layer by layer, and starts best
    from there: with `compensate="reconstruct"`, which holds the same samples out of both. Without, a start that was
    fitted to all samples looks nearer than it is.

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
