"""Least squares on calibration data: the consumers' weights make up for what they no longer read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.compensators.base import Compensator
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import Call, ModelView, TensorRef
from keras_filterprune.layers.base import Rebuilt, Resize
from keras_filterprune.probe.calibration import calibration_inputs
from keras_filterprune.probe.consumers import Rows, generator_for, kernel_matrix, moments, sample_rows
from keras_filterprune.probe.execute import Executor
from keras_filterprune.progress import track

L = keras.layers
# Columns above which the normal equations (cubic time, square memory) are not formed and only the mean is matched.
LARGEST = 6000


class LeastSquares(Compensator):
    """Refit every convolution and dense layer, front to back, to the original network's outputs.

    Layer by layer, W' = argmin ||Y - X W'||^2 in closed form, X from the pruned network and Y from the original, so
    that later layers correct what earlier ones lost (He et al. 2017); the mean shift goes into the following batch
    normalization or the bias, and every output is rescaled to the original's variance (Xie et al. 2021). Where the
    output is added to a shortcut, Y is corrected by what the shortcut itself lost, as far as it is known by then.
    Layers whose input did not change are left alone; grouped, depthwise, transposed and recurrent layers, layers
    called several times, and layers with more than 6 000 input columns keep their weights.

    Args:
        variance: rescale every output to the original's variance (True).
        ridge: added to the covariance's diagonal, relative to its mean (1e-4).
    """

    requires = frozenset({"activations"})

    def __init__(self, variance: bool = True, ridge: float = 1e-4):
        self.variance, self.ridge = variance, ridge

    def __repr__(self) -> str:
        return f"LeastSquares(variance={self.variance}, ridge={self.ridge})"

    def apply(self, rebuilt: Rebuilt, data: Any, progress: bool = True) -> str:
        run = _Run(self, rebuilt)
        inputs = calibration_inputs(data, rebuilt.graph.view)
        run.left.feed(inputs)
        run.right.feed(inputs)
        for number in track(rebuilt.resizes, "compensating", len(rebuilt.resizes), progress):
            run.left.step(number)
            run.right.step(number)
        return f"{run.refitted} layers refitted by least squares on {len(inputs[0])} samples"


@dataclass(frozen=True, eq=False)
class _Sink:
    """Where the output of a layer goes: the normalization that may take its mean, the sum it ends in."""

    normalization: Call | None
    shortcut: TensorRef | None


class _Run:
    """Original and pruned network side by side; a layer is refitted just before it runs in the pruned one."""

    def __init__(self, settings: LeastSquares, rebuilt: Rebuilt):
        self.settings, self.rebuilt = settings, rebuilt
        view = rebuilt.graph.view
        self.resize_of = {r.call.path: r for r in rebuilt.resizes.values()}
        calls_of: dict[str, int] = {}
        for call in view.calls:
            calls_of[call.path] = calls_of.get(call.path, 0) + 1
        self.once = {path for path, count in calls_of.items() if count == 1}
        self.sinks = _sinks(view)
        self.left = Executor(view, self._original)
        self.right = Executor(rebuilt.smaller_view(), self._pruned)
        self.rows: dict[str, tuple[Rows, np.ndarray]] = {}
        self.refitted = 0

    def _original(self, call: Call, args: tuple, kwargs: dict) -> Any:
        found = kernel_matrix(call.op) if call.path in self.once else None
        if found is not None and not isinstance(
            call.op, L.RNN | L.Conv1DTranspose | L.Conv2DTranspose | L.Conv3DTranspose
        ):
            self.rows[call.path] = sample_rows(call.op, args[0], generator_for(call)), found[1]
        return call.op(*args, **kwargs)

    def _pruned(self, call: Call, args: tuple, kwargs: dict) -> Any:
        twin = self.rebuilt.twins[id(call.op)]
        if call.path in self.rows:
            before, kernel = self.rows.pop(call.path)
            after = sample_rows(twin, args[0], generator_for(call))
            changed = before.x.shape != after.x.shape or not np.allclose(before.x, after.x, rtol=1e-3, atol=1e-5)
            if changed and after.x[0].size <= LARGEST:
                self._refit(call, twin, before, after, kernel)
                self.refitted += 1
        return twin(*args, **kwargs)

    def _refit(self, call: Call, twin: Any, before: Rows, after: Rows, kernel: np.ndarray) -> None:
        r = self.resize_of[call.path]
        out = r.outputs[0]
        kept = r.kept(out) if out.tracked else np.ones(kernel.shape[-1], bool)
        x = after.x.reshape(len(after.x), -1)
        y = before.x.reshape(len(x), -1) @ kernel.reshape(-1, kernel.shape[-1])[:, kept].astype(np.float32)
        sink = self.sinks.get(call.path, _Sink(None, None))
        y = y + self._lost_by_shortcut(sink, before, r)
        intercept = sink.normalization is not None or "bias" in named_weights(twin)
        weights, shift = self._solve(x, y, intercept)
        name, old = kernel_matrix(twin)
        variable = named_weights(twin)[name]
        variable.assign(weights.reshape(old.shape).reshape(variable.shape))
        self._shift(call, twin, sink, shift, kept)

    def _solve(self, x: np.ndarray, y: np.ndarray, intercept: bool) -> tuple[np.ndarray, np.ndarray]:
        """Weights (d, o) and shift (o,) of the regression of y on x, rescaled to the variance of y."""
        mean_x, covariance = moments(x)
        mean_y = y.mean(axis=0, dtype=np.float64)
        cross = moments(x, y)[1]
        if not intercept:
            covariance = covariance + np.outer(mean_x, mean_x)
            cross = cross + np.outer(mean_x, mean_y)
        covariance[np.diag_indices_from(covariance)] += (
            self.settings.ridge * np.trace(covariance) / len(covariance) + 1e-12
        )
        weights = np.linalg.solve(covariance, cross)
        if self.settings.variance:
            explained = np.einsum("io,io->o", weights, covariance @ weights)
            wanted = y.var(axis=0, dtype=np.float64) + (0 if intercept else mean_y**2)
            weights *= np.sqrt(np.divide(wanted, explained, out=np.ones_like(wanted), where=explained > 1e-8 * wanted))
        return weights, mean_y - mean_x @ weights if intercept else np.zeros(len(mean_y))

    def _shift(self, call: Call, twin: Any, sink: _Sink, shift: np.ndarray, kept: np.ndarray) -> None:
        """Put the intercept where the layer has room for it."""
        weights = named_weights(twin)
        if "bias" in weights:
            # The target left the original's bias out.
            bias = keras.ops.convert_to_numpy(named_weights(call.op)["bias"].value)[kept]
            weights["bias"].assign(bias + shift)
        elif sink.normalization is not None:
            normalization = self.rebuilt.twins[id(sink.normalization.op)]
            original = keras.ops.convert_to_numpy(sink.normalization.op.moving_mean.value)[kept]
            normalization.moving_mean.assign(original - shift)

    def _lost_by_shortcut(self, sink: _Sink, rows: Rows, r: Resize) -> np.ndarray | float:
        """What the other summand lacks, in units of this layer's output, (rows, kept) or 0."""
        if sink.shortcut is None:
            return 0.0
        before, after = self.left.value(sink.shortcut), self.right.value(sink.shortcut)
        if before is None or after is None:
            return 0.0
        out = r.outputs[0]
        kept = r.kept(out)
        lost = rows.pick(keras.ops.convert_to_numpy(before))[:, kept] - rows.pick(keras.ops.convert_to_numpy(after))
        if sink.normalization is None:
            return lost
        op = sink.normalization.op
        w = {name: keras.ops.convert_to_numpy(v.value)[kept] for name, v in named_weights(op).items()}
        scale = w.get("gamma", 1.0) / np.sqrt(w["moving_variance"] + op.epsilon)
        # A channel that normalization all but switches off cannot carry the correction.
        weak = np.abs(scale) < 0.1 * np.median(np.abs(scale))
        return np.where(weak, 0.0, lost / np.where(weak, 1.0, scale)).astype(np.float32)


def _sinks(view: ModelView) -> dict[str, _Sink]:
    """{layer: where its output goes}: through batch normalization into a sum of two, if nobody else reads it."""
    readers: dict[TensorRef, list[int]] = {}
    for number, call in enumerate(view.calls):
        for ref in call.inputs:
            readers.setdefault(ref, []).append(number)
    for ref in view.outputs:
        readers.setdefault(ref, []).append(-1)

    def only_reader(number: int) -> int | None:
        found = readers.get(TensorRef(number, 0), [])
        return found[0] if len(found) == 1 and found[0] >= 0 else None

    sinks = {}
    for number, call in enumerate(view.calls):
        if not call.inputs or getattr(call.op, "activation", None) not in (None, keras.activations.linear):
            continue
        after, at, normalization = only_reader(number), number, None
        if after is not None and isinstance(view.calls[after].op, L.BatchNormalization):
            normalization, at = view.calls[after], after
            after = only_reader(after)
        shortcut = None
        if after is not None and type(view.calls[after].op).__name__ == "Add" and len(view.calls[after].inputs) == 2:
            others = [ref for ref in view.calls[after].inputs if ref != TensorRef(at, 0)]
            same = len(others) == 1 and view.calls[after].input_shapes[0] == view.calls[after].input_shapes[1]
            shortcut = others[0] if same else None
        sinks[call.path] = _Sink(normalization, shortcut)
    return sinks
