"""The exceptions of keras_filterprune: each one also is the built-in exception a caller would expect."""


class FilterPruneError(Exception):
    """Base of every exception that keras_filterprune raises on purpose."""


class InvalidValueError(FilterPruneError, ValueError):
    """An argument is of a wrong type or out of range: a number, a function, a combination of options."""


class UnknownNameError(FilterPruneError, ValueError):
    """A name is not known: of a method, a layer, a target or an option."""


class FileError(FilterPruneError, OSError):
    """A file cannot be read or written, is damaged, or is not of the kind expected."""


class MissingPackageError(FilterPruneError, ImportError):
    """A package that is not always there is needed: a backend of Keras, one that differentiates, LiteRT, matplotlib."""


class UnsupportedModelError(FilterPruneError, ValueError):
    """The model as a whole cannot be worked on: subclassed, unbuilt, channels_first, weights that are not finite."""


class UnsupportedLayerError(FilterPruneError, TypeError):
    """A layer handler was registered or asked for something that no handler can do."""


class InfeasibleBudgetError(FilterPruneError, ValueError):
    """The budget is out of range, or below what the model can reach."""


class PlanMismatchError(FilterPruneError, ValueError):
    """A plan is applied to a model that it was not made for, or was edited into one that fits none."""


class CalibrationDataError(FilterPruneError, ValueError):
    """Calibration data is missing, empty, of the wrong shape or not finite."""


class MeasurementError(FilterPruneError, RuntimeError):
    """A file, an operator or a device could not be timed or counted."""


class SurgeryError(FilterPruneError, RuntimeError):
    """The rebuilt model does not compute what the masked original computes."""


class ExportError(FilterPruneError, RuntimeError):
    """A model could not be converted, or the converted file not confirmed against it."""
