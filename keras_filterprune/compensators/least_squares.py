"""Least squares on calibration data: the consumers' weights make up for what they no longer read."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import check_flag, check_number
from keras_filterprune.compensators.base import Compensator, left_out
from keras_filterprune.compensators.side_by_side import SideBySide
from keras_filterprune.graph.types import Call
from keras_filterprune.handlers.activation import named
from keras_filterprune.handlers.linear import Linear
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.handlers.registry import known_statistics, linear_of, statistics_of
from keras_filterprune.probe.consumers import Joint, Places, draw_places, rows_at
from keras_filterprune.probe.normalization import Pooled
from keras_filterprune.probe.outlets import Outlet, add_constant
from keras_filterprune.probe.regression import ENOUGH, fitting_ridge, halves, rectified_regression, regression, scale_to

# Columns above which the normal equations (cubic time, square memory) are not formed.
LARGEST = 6000
_SMALLEST = 1e-6
# Samples of which some can be held out.
_FEWEST = 8


class LeastSquares(Compensator):
    """Refit every convolution and dense layer, front to back, to the original network's outputs.

    Layer by layer, W' = argmin ||Y - X W'||^2 in closed form, X from the pruned network and Y from the original, so
    that later layers correct what earlier ones lost (He et al. 2017); the mean shift goes into the following batch
    normalization or the bias. Where the output is added to a shortcut, Y is corrected by what the shortcut itself lost,
    as far as it is known by then. Where a ReLU follows, max(Y, 0) is fitted: what it cuts off need only be cut off
    again. Where none does, every output is rescaled to the original's variance (Xie et al. 2021).

    With fewer samples than columns (taps x channels), or fewer than four rows for each, so much of the kernel as it was
    stays as holds best for every fourth sample, learnt without it.

    Layers with more than 6 000 input columns (taps x channels) read the regression of the removed channels on the
    kept ones instead, the same for every tap; above 6 000 channels, and for grouped and depthwise layers, only the mean
    is shifted. Layers whose input did not change, recurrent layers and layers called several times are left alone. At
    last, batch normalization takes the statistics that the refitted network has, and its scale and offset what that
    changes: inference stays the same, and training starts where it stands.

    Args:
        variance: rescale outputs that no ReLU follows to the original's variance (True).
        ridge: pull toward the kernel as it was, relative to the mean of the covariance's diagonal; with few samples, at
            least (1e-4).
        rectified: fit what a ReLU passes (True), or what reaches it (False).

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Conv2D(2, 1)]
        >>> x = np.random.default_rng(0).normal(size=(32, 8, 8, 3))
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
        >>> settings = {"data": x, "compensate": kfp.compensators.LeastSquares(), "return_report": True}
        >>> kfp.prune_model(model, "l2", 0.5, **settings)[1].compensation
        '1 layers refitted by least squares on 32 samples'
    """

    requires = frozenset({"activations"})

    def __init__(self, variance: bool = True, ridge: float = 1e-4, rectified: bool = True):
        self.variance = check_flag("variance", variance)
        self.ridge = check_number("ridge", ridge, "a share of the mean square", least=0)
        self.rectified = check_flag("rectified", rectified)

    def apply(self, rebuilt: Rebuilt, data: Any, progress: bool = True) -> str:
        run = _Run(rebuilt, self)
        samples = run.run(data, progress)
        # Moving statistics are still those of the original: training would start from another function.
        if run.refitted or run.shifted:
            run.normalised.fold()
        shifted = f", the mean of {run.shifted} shifted" if run.shifted else ""
        left = left_out(rebuilt, "input")
        return f"{run.refitted} layers refitted by least squares{shifted} on {samples} samples{left}"


class _Run(SideBySide):
    def __init__(self, rebuilt: Rebuilt, settings: LeastSquares):
        super().__init__(rebuilt)
        self.settings = settings
        self.refitted = self.shifted = 0
        self.normalised = Pooled()

    def _twin(self, call: Call, args: tuple, kwargs: dict) -> Any:
        statistics = statistics_of(self.rebuilt.twin(call))
        if statistics is not None:
            self.normalised.add(statistics, args[0])
        return super()._twin(call, args, kwargs)

    def _original(self, call: Call, args: tuple, kwargs: dict) -> Any:
        self._made = super()._original(call, args, kwargs)
        return self._made

    def adjust(self, call: Call, twin: Any, before: Any, after: Any) -> None:
        theirs, ours = linear_of(call.op), linear_of(twin)
        if theirs is None or ours is None or theirs.product is None:
            return
        if theirs.kernel is None or theirs.groups > 1 or max(before.shape[-1], after.shape[-1]) > LARGEST:
            self.shifted += self.match_mean(call, twin, before, after)
            return
        places = draw_places(call.path, theirs, before, before.shape[0], self.share)
        self._refit(call, theirs, ours, places, before, rows_at(ours, after, places))
        if theirs.transposed:
            # Rows are input pixels: what their constants add up to depends on how windows overlap.
            self.match_mean(call, twin, before, after)
        self.refitted += 1

    def _refit(self, call: Call, theirs: Linear, ours: Linear, places: Places, before: Any, after: np.ndarray) -> None:
        kept = self.kept(call)
        outlet = self.outlets[call.path]
        x = after.reshape(len(after), -1)
        y = self._sums(theirs, places, before, kept)
        bias = ours.weight(ours.bias)
        intercept = bias is not None or outlet.normalization is not None
        threshold = None
        if not ours.transposed:
            scale, offset = _affine(bias, outlet, kept)
            lost, other = self._shortcut(outlet, places, kept)
            # A channel that normalization all but switches off cannot carry a correction.
            weak = np.abs(scale) < 0.1 * np.median(np.abs(scale))
            y = y + lost * np.where(weak, 0.0, 1 / scale).astype(np.float32)
            if self.settings.rectified and outlet.rectified and intercept and other is not None:
                threshold = (-offset / scale).astype(np.float32) - other / scale.astype(np.float32)
        prior = ours.slices.reshape(x.shape[1], -1).astype(np.float64)
        if x.shape[1] > LARGEST:
            of_channels = Joint.of(*(r.reshape(-1, r.shape[-1]) for r in (after, rows_at(theirs, before, places))))
            mixing = _solved(of_channels, intercept, self.settings.ridge)
            weights = (mixing @ _of_kept(theirs, kept)).reshape(x.shape[1], -1)
            fitted = x @ weights.astype(np.float32)
            reached = fitted.mean(axis=0, dtype=np.float64), fitted.var(axis=0, dtype=np.float64)
            weights, constant = self._rescaled(weights, reached, y, intercept)
        else:
            known, ridge = self._known(x, y, places, prior)
            if threshold is not None:
                weights, constant = rectified_regression(x, y, known, threshold, scale > 0, ridge, prior)
            else:
                weights = _solved(known, intercept, ridge, prior)
                reached = known.mean @ weights, (weights * (known.covariance @ weights)).sum(axis=0)
                weights, constant = self._rescaled(weights, reached, y, intercept)
        ours.assign(weights)
        if intercept and not ours.transposed:
            add_constant(self.rebuilt, outlet, call, constant)

    def _sums(self, linear: Linear, places: Places, before: Any, kept: np.ndarray) -> np.ndarray:
        """What the original layer sums up at these places for every output that stays, float32 (rows, outputs)."""
        # Rows stand for output positions, and the output is the sums but for a bias, in the precision that is wanted.
        placed = linear.window is not None and linear.depthwise is None and not linear.transposed
        bare = named(linear.activation) == "linear"
        exact = keras.backend.standardize_dtype(self._made.dtype) == "float32"
        if placed and bare and exact:
            bias = linear.weight(linear.bias)
            found = places.pick(self._made).compress(kept, axis=1)
            return found if bias is None else found - keras.ops.convert_to_numpy(bias.value)[kept]
        kernel = _of_kept(linear, kept)
        rows = rows_at(linear, before, places)
        return rows.reshape(len(rows), -1) @ kernel.reshape(-1, kernel.shape[-1]).astype(np.float32)

    def _known(self, x: np.ndarray, y: np.ndarray, places: Places, prior: np.ndarray) -> tuple[Joint, float]:
        """Moments of rows x (n, d) and y (n, o), and their ridge: with few samples or rows, what holds for others."""
        count = places.samples[-1] + 1
        enough = count >= x.shape[1] and len(x) >= ENOUGH * x.shape[1]
        if enough or count < _FEWEST:
            return Joint.of(x, y), self.settings.ridge
        learnt, held_out = halves(x, y, places.samples)
        return learnt.joined(held_out), fitting_ridge(learnt, held_out, self.settings.ridge, prior)

    def _rescaled(self, weights: np.ndarray, reached: tuple, y: np.ndarray, intercept: bool) -> tuple:
        """The weights brought to the variance of y (n, o), and the constant (o,) that is then missing.

        Args:
            reached: mean and variance (o,) of what the weights give.
        """
        mean, variance = y.mean(axis=0, dtype=np.float64), y.var(axis=0, dtype=np.float64)
        scale = np.ones(y.shape[1])
        if self.settings.variance:
            # Without a constant to add, the mean is part of what has to be reached.
            found = [var if intercept else var + m**2 for m, var in ((mean, variance), reached)]
            scale = scale_to(*found)
        return weights * scale, mean - scale * reached[0]

    def _shortcut(self, outlet: Outlet, places: Places, kept: np.ndarray) -> tuple[Any, Any]:
        """What the other summand has lost, and what it is, (rows, kept) each or 0; (0, None) where it is not known."""
        if outlet.shortcut is None:
            return 0.0, 0.0
        before, after = self.left.value(outlet.shortcut), self.right.value(outlet.shortcut)
        if before is None or after is None:
            return 0.0, None
        other = places.pick(after)
        return places.pick(before).compress(kept, axis=1) - other, other


def _of_kept(linear: Linear, kept: np.ndarray) -> np.ndarray:
    """A layer's kernel (taps, channels, outputs), of the outputs that stay."""
    kernel = linear.slices
    return kernel[..., np.tile(kept, kernel.shape[-1] // len(kept))]


def _solved(known: Joint, intercept: bool, ridge: float, prior: Any = 0.0) -> np.ndarray:
    """Weights (d, o) of the regression of y (n, o) on x (n, d), with a constant or without."""
    gram, cross = known.covariance, known.cross
    if not intercept:
        gram = gram + np.outer(known.mean, known.mean)
        cross = cross + np.outer(known.mean, known.level)
    return regression(gram, cross, ridge, prior)


def _affine(bias: Any, outlet: Outlet, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset (kept,) of what becomes of a layer's sums before they meet others or an activation.

    Args:
        bias: variable (kept,) of the pruned layer, or None.
        outlet: where the original layer's output goes.
        kept: boolean (channels,).
    """
    bias = np.zeros(kept.sum()) if bias is None else keras.ops.convert_to_numpy(bias.value)
    if outlet.normalization is None:
        return np.ones(kept.sum()), bias
    op = outlet.normalization.op
    statistics = known_statistics(op)
    mean, variance, gamma, beta = (value[kept] for value in statistics.values("float32"))
    scale = gamma / np.sqrt(variance + statistics.epsilon)
    offset = beta + scale * (bias - mean)
    return np.where(np.abs(scale) < _SMALLEST, _SMALLEST, scale), offset
