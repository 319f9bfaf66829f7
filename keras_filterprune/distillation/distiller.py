"""The model that trains a student: as that is compiled, with a teacher's outputs beside the labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_filterprune.distillation.imitation import AttentionTransfer, Imitation, Scaled
from keras_filterprune.errors import InvalidValueError
from keras_filterprune.graph.compiled import compile_arguments, per_output
from keras_filterprune.graph.keras_view import output_names
from keras_filterprune.rebuild.verify import call_whole


@dataclass(frozen=True)
class Taught:
    """An output that the student learns: its number and the teacher's, the loss, and its weight among others."""

    ours: int
    theirs: int
    imitation: Imitation
    weight: float


class Distiller(keras.distillation.Distiller):
    """Keras' own, with losses, weights of samples, metrics and strategies handled as `keras.Model` handles them.

    Args:
        teacher: the frozen copy.
        student: compiled.
        taught: its outputs that learn.
        features: (student's layer, teacher's layer) of which the attention is compared.
        alpha, attention: see `distill`.
    """

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        taught: list[Taught],
        features: list[tuple[str, str]],
        alpha: float,
        attention: float,
    ):
        super().__init__(teacher, student, [], [], student_loss_weight=1 - alpha, name=f"{student.name}_distiller")
        self.output_names = output_names(student)
        self._taught, self._alpha, self._attention = tuple(taught), alpha, attention
        self._teaching = keras.Model(
            _inputs(teacher), [*teacher.outputs, *(teacher.get_layer(theirs).output for _, theirs in features)]
        )
        watched = [student.get_layer(ours).output for ours, _ in features]
        self._watched = keras.Model(_inputs(student), watched) if features else None
        self._transfer, self._scaled = AttentionTransfer(), Scaled()
        # Both networks are, and BackupAndRestore asks.
        self.built = True

    def compile_like_student(self) -> None:
        """Compile with the very objects that the student is compiled with; its losses get their share."""
        arguments = compile_arguments(self.student)
        given, share = arguments["loss_weights"], self.student_loss_weight
        arguments["loss_weights"] = keras.tree.map_structure(
            lambda weight: share * weight if isinstance(weight, int | float) else share,
            arguments["loss"] if given is None else given,
        )
        keras.Model.compile(self, self.student.optimizer, **arguments)

    def count_alike(self, inputs: list[Any]) -> None:
        """Weigh outputs so that what the teacher gives for different samples is as far apart in each."""
        given = call_whole(self._teaching, inputs)
        apart = [output.imitation.apart(given[output.theirs]) for output in self._taught]
        mean = sum(apart) / len(apart)
        # What is the same for all samples has no unit.
        self._taught = tuple(
            replace(output, weight=output.weight * mean / own) if own else output
            for output, own in zip(self._taught, apart, strict=True)
        )

    def distances(self, inputs: list[Any]) -> np.ndarray:
        """How far the student is from the teacher for every sample, (samples,), in inference mode."""
        given, own = call_whole(self._teaching, inputs), call_whole(self.student, inputs)
        total = 0.0
        for output in self._taught:
            apart = output.imitation.call(given[output.theirs], own[output.ours])
            total = total + output.weight * keras.ops.mean(keras.ops.reshape(apart, (len(inputs[0]), -1)), axis=1)
        return keras.ops.convert_to_numpy(total).astype("float64")

    @property
    def metrics(self) -> list[Any]:
        # Without labels, those of the student are never built, and have no result.
        return [metric for metric in super().metrics if getattr(metric, "built", True)]

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        if y is None:
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        if y_pred is None:
            y_pred = self(x, training=training)
        regularization = self._scaled.of(sum(map(keras.ops.sum, self.losses))) if self.losses else 0.0
        loss, own = regularization, 0.0
        if y is None and not self._alpha:
            raise InvalidValueError("alpha is above 0 for data without labels: all is learnt from the teacher.")
        if y is not None and self.loss is not None and self.student_loss_weight:
            # Before the teacher runs: what its layers add as losses counts for nobody.
            loss = keras.Model.compute_loss(self, x, y, y_pred, sample_weight, training)
            own = (loss - regularization) / self.student_loss_weight
        taught = self._teach(x, y_pred, sample_weight, training) if self._alpha else 0.0
        total = loss + self._alpha * taught
        count, whole = keras.ops.shape(keras.tree.flatten(y_pred)[0])[0], self._scaled.of(1.0)
        for tracker, value in (
            (self.student_loss_tracker, own),
            (self.distillation_loss_tracker, taught),
            (self.total_loss_tracker, total),
        ):
            tracker.update_state(value / whole, sample_weight=count)
        return total

    def _teach(self, x: Any, y_pred: Any, sample_weight: Any, training: bool) -> Any:
        """The teacher's part of the loss."""
        given = keras.tree.flatten(self._teaching(x, training=False))
        outputs, weights = keras.tree.flatten(y_pred), per_output(self.student, sample_weight)
        total = sum(
            output.weight * output.imitation(given[output.theirs], outputs[output.ours], weights[output.ours])
            for output in self._taught
        )
        if self._watched is not None:
            own = keras.tree.flatten(self._watched(x, training=training))
            weight = None if keras.tree.is_nested(sample_weight) else sample_weight
            for theirs, ours in zip(given[len(outputs) :], own, strict=True):
                total = total + self._attention * self._transfer(theirs, ours, weight)
        return total

    # What callbacks save and restore is the student: a plain model, whose optimizer is the one that trains it.
    def save(self, *args, **kwargs) -> None:
        self._synchronised().save(*args, **kwargs)

    def save_weights(self, *args, **kwargs) -> None:
        self._synchronised().save_weights(*args, **kwargs)

    def load_weights(self, *args, **kwargs) -> None:
        self.student.load_weights(*args, **kwargs)

    def _synchronised(self) -> keras.Model:
        # Within an epoch, Keras keeps the values of variables elsewhere on JAX.
        if hasattr(self, "jax_state_sync"):
            self.jax_state_sync()
        return self.student


def _inputs(model: keras.Model) -> Any:
    """The inputs of a model in their structure. A Sequential model that was never called has none to give away."""
    return model.inputs if isinstance(model, keras.Sequential) else model.input
