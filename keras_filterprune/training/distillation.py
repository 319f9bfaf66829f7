"""Training a small network with a large one as its teacher, on `keras.distillation`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_filterprune.checks import check_flag, check_names, check_number, wrong
from keras_filterprune.errors import InvalidValueError, UnknownNameError, UnsupportedModelError
from keras_filterprune.graph.keras_view import view_model


def distill(
    student: keras.Model,
    teacher: keras.Model,
    temperature: float = 4.0,
    alpha: float = 0.7,
    features: Iterable[str] | Mapping[str, str] | None = None,
    *,
    attention: float = 1000.0,
    squared_temperature: bool = True,
) -> keras.Model:
    """A model whose `fit` trains the student on labels and on the teacher's outputs.

    The loss is (1 - alpha) L + alpha (T^2 KL(softmax(teacher / T) || softmax(student / T)) + attention * A): L is the
    student's own (Hinton et al. 2015), A the mean squared difference of the attention maps of features, the squares
    summed over channels and brought to norm 1 (Zagoruyko and Komodakis 2017), so that widths may differ. The losses of
    the student's regularizers are added. The papers of LRF and FP-OMP leave T^2 out: alpha=0.5 and
    squared_temperature=False is half their loss with its weight of 1 for both parts.

    Args:
        student: a compiled classifier, with logits or probabilities (a softmax at the end) as its one output. It is
            trained in place, and stays as plain as it is.
        teacher: a classifier with the same inputs and classes. It is not modified: a frozen copy teaches, in inference
            mode.
        temperature: T, above 0 (4).
        alpha: share of the teacher in the loss, in [0, 1] (0.7).
        features: names of layers of positions and channels, in both models alike or {student's: teacher's}, whose
            attention maps are compared too (None). The student runs a second time for them.
        attention: weight of A (1 000, the paper's).
        squared_temperature: multiply the divergence by T^2, which keeps its gradient's size over temperatures (True).

    Returns:
        A `keras.distillation.Distiller`, compiled with the student's loss, metrics and optimizer.

    Raises:
        UnsupportedModelError: the student is not compiled with one loss, or inputs or outputs of the two do not match.
        InvalidValueError: a number is out of range, or a layer has no positions.
        UnknownNameError: a layer is not there.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8)
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16), keras.layers.Dense(3)])
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> student.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = kfp.distill(student, teacher).fit(x, y, verbose=0)
    """
    _check(student, teacher)
    check_number("temperature", temperature, above=0)
    check_number("alpha", alpha, "the teacher's share", least=0, most=1)
    check_number("attention", attention, "the weight of the attention maps", least=0)
    check_flag("squared_temperature", squared_temperature)
    layers = _pairs(student, teacher, features)
    frozen = keras.models.clone_model(teacher)
    frozen.set_weights(teacher.get_weights())
    # Keras multiplies the divergence by T^2.
    share = 1.0 if squared_temperature else 1 / temperature**2
    imitation = _Imitation(float(temperature), _ends_in_softmax(teacher), _ends_in_softmax(student))
    try:
        distiller = _Distiller(
            frozen,
            student,
            [imitation, *(AttentionTransfer(theirs, ours) for ours, theirs in layers)],
            [share] + [float(attention)] * len(layers),
            student_loss_weight=1 - float(alpha),
            name=f"{student.name}_distiller",
        )
    except ValueError as error:
        raise UnsupportedModelError(
            f"'{teacher.name}' cannot teach '{student.name}': {error} Pass the network that the student was pruned "
            "from, or one with the same inputs and outputs."
        ) from error
    config = keras.saving.deserialize_keras_object(student.get_compile_config())
    distiller.compile(student.optimizer, student.loss, metrics=config["metrics"], jit_compile=student.jit_compile)
    return distiller


def _check(student: keras.Model, teacher: keras.Model) -> None:
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, keras.Model):
            raise wrong(name, model, "a keras.Model", UnsupportedModelError)
        if len(getattr(model, "outputs", None) or ()) != 1:
            raise UnsupportedModelError(
                f"distill works on functional and Sequential models with one output of classes. Model '{model.name}' "
                f"has {len(getattr(model, 'outputs', None) or ())} outputs."
            )
    if not student.compiled or isinstance(student.loss, list | tuple | dict) or student.loss is None:
        raise UnsupportedModelError(
            f"distill trains a student with the loss it is compiled with, one for one output. Model '{student.name}' "
            f"has loss={student.loss if student.compiled else None!r}: compile(optimizer, loss) it first."
        )


def _pairs(student: keras.Model, teacher: keras.Model, features: Any) -> list[tuple[str, str]]:
    """(student's layer, teacher's layer) whose attention is compared."""
    names = check_names("features", () if features is None else features)
    pairs = (
        [(name, features[name]) for name in names]
        if isinstance(features, Mapping)
        else [(name, name) for name in names]
    )
    check_names("features", [theirs for _, theirs in pairs])
    for side, model, asked in (
        ("student", student, [ours for ours, _ in pairs]),
        ("teacher", teacher, [theirs for _, theirs in pairs]),
    ):
        known = {layer.name: layer for layer in model.layers}
        for name in asked:
            if name not in known:
                raise UnknownNameError(f"the {side} '{model.name}' has no layer '{name}'. It has: {', '.join(known)}.")
            if len(known[name].output.shape) < 3:
                raise InvalidValueError(
                    f"features are layers of positions and channels; '{name}' of the {side} '{model.name}' gives "
                    f"{tuple(known[name].output.shape)}."
                )
    return pairs


def _ends_in_softmax(model: keras.Model) -> bool:
    """Whether a model's one output is made of probabilities."""
    view = view_model(model)
    last = view.calls[view.outputs[0].call].op
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax


class _Imitation(keras.distillation.LogitsDistillation):
    """Logits distillation for models with probabilities as well, whose logarithms are logits."""

    def __init__(self, temperature: float, teacher_gives_probabilities: bool, student_gives_probabilities: bool):
        super().__init__(temperature, keras.losses.KLDivergence())
        self._probabilities = teacher_gives_probabilities, student_gives_probabilities

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs) -> Any:
        logits = (
            keras.ops.log(keras.ops.maximum(outputs, 1e-7)) if probabilities else outputs
            for outputs, probabilities in zip((teacher_outputs, student_outputs), self._probabilities, strict=True)
        )
        return super().compute_loss(*logits, **kwargs)


class AttentionTransfer(keras.distillation.DistillationLoss):
    """Mean squared difference of two attention maps: where a layer's activations are large, whatever their number.

    Args:
        teacher_layer_name, student_layer_name: layers with outputs (batch, *positions, channels), positions alike.
    """

    def __init__(self, teacher_layer_name: str, student_layer_name: str):
        self.teacher_layer_name, self.student_layer_name = teacher_layer_name, student_layer_name

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs) -> Any:
        return keras.ops.mean(keras.ops.square(_attention(teacher_outputs) - _attention(student_outputs)))


def _attention(features: Any) -> Any:
    """(batch, positions), of norm 1."""
    energy = keras.ops.sum(keras.ops.square(keras.ops.cast(features, "float32")), axis=-1)
    return keras.ops.normalize(keras.ops.reshape(energy, (keras.ops.shape(energy)[0], -1)), axis=-1)


class _Distiller(keras.distillation.Distiller):
    """Keras' own does not look at the losses of regularizers."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + sum(self.losses) if self.losses else loss
