"""Training a small network with a large one as its teacher, on `keras.distillation`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_filterprune.checks import check_flag, check_names, check_number, wrong
from keras_filterprune.distillation.distiller import Distiller, Taught
from keras_filterprune.distillation.heads import Head, heads_of
from keras_filterprune.distillation.imitation import Imitation
from keras_filterprune.errors import InvalidValueError, UnknownNameError, UnsupportedModelError
from keras_filterprune.graph.compiled import compile_arguments, own_steps, per_output
from keras_filterprune.graph.keras_view import output_names
from keras_filterprune.opening import open_model
from keras_filterprune.rebuild.clone import clone, scope_of


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

    The loss is (1 - alpha) L + alpha (D + attention * A) + R: L is the student's own (Hinton et al. 2015), R are the
    losses of its regularizers, A is the mean squared difference of the attention maps of features, the squares summed
    over channels and brought to norm 1 (Zagoruyko and Komodakis 2017), so that widths may differ. D is, of every
    output that has a loss, by what it is:

    - classes (a softmax, at every position if there are several): T^2 KL(softmax(teacher / T) || softmax(student / T));
    - single units (sigmoids): T^2 KL(sigmoid(teacher / T) || sigmoid(student / T)), the mean over units;
    - numbers: the squared difference, the mean over the last axis, as in "mse".

    Probabilities are told from logits, and classes from numbers, by what the outputs sum to, by the activation behind
    which no layer has weights, and by what the losses do with them. Weights of outputs, of samples and of classes weigh
    D as they weigh L. Without labels, in `fit(x)`, the student learns from the teacher alone. The papers of LRF and
    FP-OMP leave T^2 out: alpha=0.5 and squared_temperature=False is half their loss, with its weight of 1 for both.

    Args:
        student: a compiled functional or Sequential model. It is trained in place, and stays as plain as it is:
            callbacks of this library act on it, `ModelCheckpoint` saves it.
        teacher: one with the same inputs and outputs, subclassed or not. It is not modified: a frozen copy teaches, in
            inference mode.
        temperature: T, above 0 (4). `math.inf`: mean squares of what logits differ by, of classes less its mean.
        alpha: share of the teacher in the loss, in [0, 1] (0.7).
        features: names of layers of positions and channels, in both models alike or {student's: teacher's}, whose
            attention maps are compared too (None). The student runs a second time for them.
        attention: weight of A (1 000, the paper's).
        squared_temperature: multiply the divergences by T^2, which keeps their gradients' size over temperatures
            (True).

    Returns:
        A `keras.distillation.Distiller`, compiled as the student is, with its optimizer. `fit` reports "loss" (all of
        it), "student_loss" (L) and "distillation_loss" (D + attention * A).

    Raises:
        UnsupportedModelError: the student is not compiled, or inputs or outputs of the two do not match.
        InvalidValueError: a number is out of range, a layer has no positions, or alpha is 0 for data without labels.
        UnknownNameError: a layer is not there.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8)
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16), keras.layers.Dense(3)])
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> student.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = kfp.distill(student, teacher).fit(x, y, verbose=0)
    """
    if isinstance(teacher, keras.Model) and not getattr(teacher, "outputs", None):
        teacher = open_model(teacher)
    _check(student, teacher)
    _check_scores(student, teacher)
    if not student.compiled:
        raise UnsupportedModelError(
            f"distill trains a student as it is compiled. Model '{student.name}' is not: compile(optimizer, loss) it "
            "first."
        )
    _check_temperature(temperature)
    check_number("alpha", alpha, "the teacher's share", least=0, most=1)
    check_number("attention", attention, "the weight of the attention maps", least=0)
    check_flag("squared_temperature", squared_temperature)
    layers = _pairs(student, teacher, features)
    taught = _taught(student, teacher, float(temperature), temperature**2 if squared_temperature else 1.0)
    if steps := own_steps(student, "train_step", "test_step", "compute_loss", "compute_metrics"):
        warnings.warn(
            f"distill trains '{student.name}' on the loss that it is compiled with: {steps} is not called.",
            stacklevel=2,
        )
    with scope_of(student):
        distiller = _distiller(student, teacher, taught, layers, float(alpha), float(attention))
        distiller.compile_like_student()
    return distiller


def imitator(student: keras.Model, teacher: keras.Model, inputs: list[Any]) -> Distiller:
    """A model whose `fit` trains the student on the teacher's outputs alone, by squares of what logits differ by.

    It is not compiled, and the student need not be. Outputs without gradients, integers, are not looked at; all others
    count alike, whatever their units.

    Args:
        student, teacher: functional or Sequential models.
        inputs: flat inputs of a few samples.
    """
    _check(student, teacher)
    taught = _taught(student, teacher, math.inf, 1.0, every=True)
    if not taught or not student.trainable_variables:
        missing = "trainable weights" if taught else "output but of integers"
        raise UnsupportedModelError(f"'{student.name}' has no {missing}: nothing can be learnt.")
    imitating = _distiller(student, teacher, taught, [], 1.0, 0.0)
    imitating.count_alike(inputs)
    return imitating


def _distiller(
    student: keras.Model,
    teacher: keras.Model,
    taught: list[Taught],
    layers: list[tuple[str, str]],
    alpha: float,
    attention: float,
) -> Distiller:
    try:
        return Distiller(clone(teacher), student, taught, layers, alpha, attention)
    except ValueError as error:
        raise UnsupportedModelError(
            f"'{teacher.name}' cannot teach '{student.name}': {error} Pass the network that the student was pruned "
            "from, or one with the same inputs and outputs."
        ) from error


def _check(student: keras.Model, teacher: keras.Model) -> None:
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, keras.Model):
            raise wrong(name, model, "a keras.Model", UnsupportedModelError)
        if not getattr(model, "outputs", None):
            raise UnsupportedModelError(
                f"distill works on functional and Sequential models. Model '{model.name}' ({type(model).__name__}) has "
                f"no graph of layers: open_model({name}) gives one that has."
            )
    if len(student.outputs) != len(teacher.outputs):
        raise UnsupportedModelError(
            f"'{teacher.name}' cannot teach '{student.name}': they have {len(teacher.outputs)} and "
            f"{len(student.outputs)} outputs. keras.Model(teacher.input, [...]) picks those of the student."
        )


def _check_temperature(temperature: Any) -> None:
    if not (isinstance(temperature, float) and temperature == math.inf):
        check_number("temperature", temperature, "math.inf, or a number", above=0)


def _check_scores(student: keras.Model, teacher: keras.Model) -> None:
    for name, model in (("student", student), ("teacher", teacher)):
        for output_name, output in zip(output_names(model), model.outputs, strict=True):
            if "float" not in output.dtype:
                raise UnsupportedModelError(
                    f"output '{output_name}' of the {name} '{model.name}' gives {output.dtype}, from which nothing can "
                    "be learnt. Take the output before that, of scores."
                )


def _taught(
    student: keras.Model, teacher: keras.Model, temperature: float, factor: float, every: bool = False
) -> list[Taught]:
    """The outputs that the student is trained on: those that have a loss, or every one that has gradients."""
    names, known = output_names(student), output_names(teacher)
    # Outputs that are called alike stand in any order.
    named = len(set(names)) == len(names) and set(names) == set(known)
    others = [known.index(name) for name in names] if named else list(range(len(names)))
    losses, own = per_output(student, student.loss), per_output(teacher, teacher.loss)
    own = [own[other] for other in others]
    # A loss that one of the two lacks is the other's.
    ours = heads_of(student, [a or b for a, b in zip(losses, own, strict=True)])
    theirs = heads_of(teacher, [own[i] or losses[i] for i in map(others.index, range(len(names)))])
    weights = per_output(student, compile_arguments(student)["loss_weights"] if student.compiled else None)
    found = []
    for number, (name, loss, weight) in enumerate(zip(names, losses, weights, strict=True)):
        if "float" in student.outputs[number].dtype if every else loss is not None or student.loss is None:
            heads = _agreed(name, ours[number], theirs[others[number]])
            reduction = getattr(loss, "reduction", None)
            imitation = Imitation(*heads, temperature, factor, None if reduction == "none" else reduction)
            found.append(Taught(number, others[number], imitation, 1.0 if weight is None else float(weight)))
    return found


def _agreed(name: str, ours: Head, theirs: Head) -> tuple[Head, Head]:
    """What an output is to both; logits look like plain numbers where no loss tells."""
    known = next((head for head in (ours, theirs) if head.probabilities), ours if ours.kind != "numbers" else theirs)
    for head in (ours, theirs):
        if (head.kind != known.kind and head.kind != "numbers") or (head.probabilities and head.axes != known.axes):
            raise UnsupportedModelError(
                f"at output '{name}' the student gives {_described(ours)}, the teacher {_described(theirs)}: one cannot"
                " learn from the other."
            )
    ours, theirs = (Head(known.kind, known.axes, head.probabilities) for head in (ours, theirs))
    return ours, theirs


def _described(head: Head) -> str:
    form = "probabilities" if head.probabilities else "logits"
    return "numbers" if head.kind == "numbers" else f"{form} of {head.kind} along axes {head.axes}"


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
