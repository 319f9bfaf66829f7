"""The exceptions of keras_filterprune: each one also is the built-in exception a caller would expect."""


class FilterPruneError(Exception):
    """Base of every exception that keras_filterprune raises on purpose.

    Example:
        >>> import keras_filterprune as kfp
        >>> try:
        ...     kfp.MacsBudget(keep=50)
        ... except kfp.FilterPruneError as error:
        ...     print(error)
        keep is the fraction that is kept, in (0, 1]. Received: keep=50. For 50 %, give 0.5.
    """


class InvalidValueError(FilterPruneError, ValueError):
    """An argument is of a wrong type or out of range: a number, a function, a combination of options.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.Genetic(population=1)
        Traceback (most recent call last):
        ...
        keras_filterprune.errors.InvalidValueError: population is an integer, at least 4. Received: population=1.
    """


class UnknownNameError(FilterPruneError, ValueError):
    """A name is not known: of a method, a layer, a target or an option.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.FPOMP(selection="backwards")
        Traceback (most recent call last):
        ...
        keras_filterprune.errors.UnknownNameError: selection is one of omp, gain, backward. Received: ...
    """


class FileError(FilterPruneError, OSError):
    """A file cannot be read or written, is damaged, or is not of the kind expected.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.PruningPlan.load("missing.json")
        Traceback (most recent call last):
        ...
        keras_filterprune.errors.FileError: cannot read a plan from 'missing.json': ...
    """


class MissingPackageError(FilterPruneError, ImportError):
    """A package that is not always installed is needed: a backend of Keras, LiteRT, matplotlib.

    Example:
        >>> import keras_filterprune as kfp
        >>> issubclass(kfp.errors.MissingPackageError, ImportError)
        True
    """


class UnsupportedModelError(FilterPruneError, ValueError):
    """The model as a whole cannot be worked on: it is not built, cannot be opened, or has weights that are not finite.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> kfp.analyze(keras.Sequential([keras.layers.Dense(3)]))
        Traceback (most recent call last):
        ...
        keras_filterprune.errors.UnsupportedModelError: Sequential model ... is not built, ...
    """


class UnsupportedLayerError(FilterPruneError, TypeError):
    """A layer handler was registered or asked for something that no handler can do.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> kfp.register_handler("Conv2D", like=keras.layers.Conv2D)
        Traceback (most recent call last):
        ...
        keras_filterprune.errors.UnsupportedLayerError: register_handler expects classes. Received: 'Conv2D'.
    """


class InfeasibleBudgetError(FilterPruneError, ValueError):
    """The budget is out of range, or below what the model can reach.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Conv2D(2, 1)]
        >>> kfp.prune_model(keras.Sequential(layers), "l2", 0.01)
        Traceback (most recent call last):
        ...
        keras_filterprune.errors.InfeasibleBudgetError: MacsBudget(keep=0.01) asks for at most 83 MACs; ...
    """


class PlanMismatchError(FilterPruneError, ValueError):
    """A plan is applied to a model that it was not made for, or was edited into one that fits none.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> narrow, wide = (
        ...     keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(n, 3), keras.layers.Conv2D(2, 1)])
        ...     for n in (4, 8)
        ... )
        >>> kfp.apply_plan(wide, kfp.plan_pruning(narrow, "l2", 0.5))
        Traceback (most recent call last):
        ...
        keras_filterprune.errors.PlanMismatchError: the plan was made for model ...
    """


class CalibrationDataError(FilterPruneError, ValueError):
    """Calibration data is missing, empty, of the wrong shape or not finite.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Conv2D(2, 1)]
        >>> kfp.prune_model(keras.Sequential(layers), "cap", 0.5)
        Traceback (most recent call last):
        ...
        keras_filterprune.errors.CalibrationDataError: CaP() needs calibration inputs: pass data=. ...
    """


class MeasurementError(FilterPruneError, RuntimeError):
    """A file, an operator or a device could not be timed or counted.

    Example:
        >>> import keras_filterprune as kfp
        >>> issubclass(kfp.errors.MeasurementError, RuntimeError)
        True
    """


class SurgeryError(FilterPruneError, RuntimeError):
    """The rebuilt model does not compute what the masked original computes.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> class Roll(keras.layers.Layer):
        ...     def call(self, x):
        ...         return keras.ops.roll(x, 1, axis=-1)
        ...
        >>> _ = kfp.register_handler(Roll)(kfp.handlers.Elementwise)  # wrong: it moves channels
        >>> layers = [keras.layers.Conv2D(8, 3), Roll(), keras.layers.Conv2D(2, 1)]
        >>> kfp.prune_model(keras.Sequential([keras.Input((8, 8, 3)), *layers]), "l2", 0.5)
        Traceback (most recent call last):
        ...
        keras_filterprune.errors.SurgeryError: ...
    """


class ExportError(FilterPruneError, RuntimeError):
    """A model could not be converted, or the converted file not confirmed against it.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((None, 3)), keras.layers.Dense(2)])
        >>> kfp.export_tflite(model, "model.tflite")
        Traceback (most recent call last):
        ...
        keras_filterprune.errors.ExportError: a .tflite file needs fixed sizes, but input ...
    """
