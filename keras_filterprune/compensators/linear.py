"""Weight compensation without data: what filters have in common is read off their weights."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from keras_filterprune.compensators.base import Compensator, left_out
from keras_filterprune.handlers.base import Resize
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.handlers.registry import known_linear, linear_of
from keras_filterprune.probe.gaussian import Channels, gaussian_inputs, read_moments
from keras_filterprune.probe.outlets import add_constant, outlets
from keras_filterprune.probe.regression import mixed_by_all, mixed_by_nearest, refit
from keras_filterprune.progress import track

# Added to the covariance's diagonal, relative to its mean.
_RIDGE = 1e-6


class Linear(Compensator):
    """Express removed channels by kept ones and push their weights into all consumers, without any data.

    A removed channel is replaced by its least-squares combination x_j ~ sum_l M_jl x_l + c_j of the kept channels of
    the same tensor, W'_l = W_l + sum_j M_jl W_j (FP-OMP's and LRF's compensation, carried through batch
    normalization). The covariances it needs come from the weights: filters' inner products, the statistics of batch
    normalization, and activations taken of Gaussians. Exact where removed filters are combinations of kept ones
    and nothing but batch normalization lies between; an approximation behind an activation. The constant goes into the
    consumer's bias or the batch normalization behind it. Outputs keep their variance.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.L2(), compensator=kfp.compensators.Linear()).compensator
        Linear()
    """

    def mixing(self, covariance: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """From which kept columns every column is taken: (n_kept, d), given their covariance and which are kept."""
        return mixed_by_all(covariance, kept, _RIDGE)

    def apply(self, rebuilt: Rebuilt, data: Any, progress: bool = True) -> str:
        graph = rebuilt.graph
        calls = Counter(call.path for call in graph.view.calls)
        found = outlets(graph.view)
        losing = {
            r.call.path: r
            for r in rebuilt.resizes.values()
            if calls[r.call.path] == 1 and r.inputs[0].tracked and not r.kept(r.inputs[0]).all() and _mixes(r.call.op)
        }
        # What reads channels of which nothing is known is left alone.
        channels = {path: read for path, read in gaussian_inputs(graph, set(losing)).items() if not read.guessed}
        losing = {path: losing[path] for path in losing if path in channels}
        for path, r in track(losing.items(), "compensating", len(losing), progress):
            constant = self._compensate(r, rebuilt.twin(r.call), channels[path])
            add_constant(rebuilt, found[path], r.call, constant)
        left = left_out(rebuilt, "input", "filter")
        return f"the weights of {len(losing)} layers make up for the channels they lost, without data{left}"

    def _compensate(self, r: Resize, twin: Any, channels: Channels) -> np.ndarray:
        """Write the weights that make up for the lost channels; returns the constant (outputs,) that is missing."""
        linear, ids = known_linear(r.call.op), r.inputs[0].ids
        kept_out = r.kept(r.outputs[0]) if r.outputs[0].tracked else np.ones(r.outputs[0].last, np.bool_)
        kernel = linear.matrix
        if kernel is None:
            lost = channels.at(ids)[0] * ~r.alive[ids]
            return _lost_by_groups(linear.slices, lost.reshape(linear.groups, -1))[kept_out]
        kernel = kernel[..., np.tile(kept_out, kernel.shape[-1] // len(kept_out))]
        where, mean, covariance = read_moments(linear, ids, channels)
        ids = linear.read(ids)
        kept = r.alive[ids[where[:, 0]]]
        folded = kernel[:, where.T].reshape(-1, len(where), kernel.shape[-1])
        new, constant = refit(mean, covariance, folded, kept, self.mixing(covariance, kept))
        whole = np.zeros_like(kernel)
        whole[:, where[kept].T] = new.reshape(len(kernel), -1, *new.shape[1:])
        known_linear(twin).assign(whole[:, r.alive[ids]])
        # A transposed convolution adds up the taps of overlapping windows.
        overlaps = math.prod(linear.window.strides) if linear.window and linear.transposed else 1
        return constant.reshape(-1, kept_out.sum()).sum(axis=0) / overlaps


class Merge(Linear):
    """Add what read a removed channel to what reads the kept channel most like it, without any data.

    W'_r = W_r + c W_j for the kept channel r that correlates most with the removed channel j (the final step of cluster
    pruning, Niu 2022). Biases, batch normalization and activations count: the correlations are those of the channels
    where they are read, estimated from the weights as in `Linear`. Exact for duplicates, and for multiples c > 0 of a
    filter in front of a ReLU; grouped and recurrent layers are left as `Linear` leaves them. Meant for criteria that
    remove near-duplicates (`Similarity`, `Nystrom`, `FPGM`).

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.FPGM(), compensator=kfp.compensators.Merge()).compensator
        Merge()
    """

    def mixing(self, covariance: np.ndarray, kept: np.ndarray) -> np.ndarray:
        return mixed_by_nearest(covariance, kept)


def _mixes(op: Any) -> bool:
    """Whether the outputs of a layer are sums over its channels, in groups perhaps, and over nothing else."""
    linear = linear_of(op)
    return linear is not None and linear.product is not None and linear.kernel is not None


def _lost_by_groups(kernel: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """What channels of mean `lost` (groups, channels) added to the outputs of a kernel (taps, channels, outputs)."""
    kernel = kernel.reshape(*kernel.shape[:2], len(lost), -1)
    return np.einsum("gi,tigo->go", lost, kernel).ravel()
