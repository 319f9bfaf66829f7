"""The registered methods, one small function each, in the order of the table of methods."""

from __future__ import annotations

from dataclasses import replace

from keras_filterprune.allocators import Global, Search, Sensitivity
from keras_filterprune.compensators import Adapters, LeastSquares, Linear, Merge, Reconstruct
from keras_filterprune.criteria import (
    FPGM,
    FPOMP,
    L1,
    L2,
    LRF,
    APoZ,
    BNScale,
    CaP,
    Dead,
    Energy,
    Genetic,
    GeometricMean,
    MeanActivation,
    Nystrom,
    OperatorNorm,
    OutputPursuit,
    Random,
    Similarity,
    Taylor,
    TaylorGate,
)
from keras_filterprune.methods.registry import Method, built_in_method


@built_in_method("l1")
def l1(seed: int, data: bool) -> Method:
    """Sum of absolute weights of a filter (Li et al. 2017)."""
    return Method(L1())


@built_in_method("l2")
def l2(seed: int, data: bool) -> Method:
    """Euclidean norm of a filter."""
    return Method(L2())


@built_in_method("fpgm")
def fpgm(seed: int, data: bool) -> Method:
    """Distance to the geometric median of the layer's filters (He et al. 2019)."""
    return Method(FPGM())


@built_in_method("bn_scale")
def bn_scale(seed: int, data: bool) -> Method:
    """Batch normalization scale, ranked globally (Liu et al. 2017)."""
    return Method(BNScale(), Global(0.0))


@built_in_method("fp_omp")
def fp_omp(seed: int, data: bool) -> Method:
    """Orthogonal matching pursuit over the filters (Purohit et al. 2022).

    The selection is the paper's, with and without data; so is the compensation with `compensate="adapter"`.
    """
    return Method(FPOMP(), compensator=LeastSquares() if data else Linear())


@built_in_method("lrf")
def lrf(seed: int, data: bool) -> Method:
    """Linearly replaceable filters go first (Joo et al. 2021)."""
    return Method(LRF(), compensator=LeastSquares() if data else Linear())


@built_in_method("similarity")
def similarity(seed: int, data: bool) -> Method:
    """A filter whose spatial pattern nearly equals another's goes; all pairs (Singh and Plumbley 2022)."""
    return Method(Similarity(), compensator=LeastSquares() if data else Merge())


@built_in_method("nystrom")
def nystrom(seed: int, data: bool) -> Method:
    """As similarity, from the similarities to a few filters (Singh and Plumbley 2023)."""
    return Method(Nystrom(), compensator=LeastSquares() if data else Merge())


@built_in_method("operator_norm")
def operator_norm(seed: int, data: bool) -> Method:
    """Share in the direction in which filters differ most (Singh and Plumbley 2023)."""
    return Method(OperatorNorm())


@built_in_method("geometric_mean")
def geometric_mean(seed: int, data: bool) -> Method:
    """Distance to the geometric mean of absolute weights, a baseline."""
    return Method(GeometricMean())


@built_in_method("taylor")
def taylor(seed: int, data: bool) -> Method:
    """Change of the loss with a filter's weights, to first order (Molchanov et al. 2019)."""
    return Method(Taylor())


@built_in_method("taylor_gate")
def taylor_gate(seed: int, data: bool) -> Method:
    """Change of the loss with a filter's channels, to first order, ranked globally (Molchanov et al. 2019)."""
    return Method(TaylorGate(), Global())


@built_in_method("apoz")
def apoz(seed: int, data: bool) -> Method:
    """How often a filter is not zero (Hu et al. 2016)."""
    return Method(APoZ())


@built_in_method("mean_activation")
def mean_activation(seed: int, data: bool) -> Method:
    """Mean of a filter's activations (Molchanov et al. 2017)."""
    return Method(MeanActivation())


@built_in_method("energy")
def energy(seed: int, data: bool) -> Method:
    """Share of the consumers' output variance."""
    return Method(Energy(), Global(0.7), LeastSquares())


@built_in_method("cap")
def cap(seed: int, data: bool) -> Method:
    """Error of the consumers' outputs after least squares, eliminating backwards (after Xie et al. 2021)."""
    return Method(CaP(), Global(0.7), LeastSquares())


@built_in_method("pursuit")
def pursuit(seed: int, data: bool) -> Method:
    """Error of the consumers' outputs after least squares, weighed by what it does to the network's, in two rounds.

    Its settings were chosen on training images.
    """
    return Method(OutputPursuit(), Global(0.7), LeastSquares(), rounds=2)


@built_in_method("auto")
def auto(seed: int, data: bool) -> Method:
    """The best that was measured without labels: `pursuit`, then the original teaches; `l2` with `linear` without data.

    Figures are in examples/benchmarks/no_training.py.
    """
    if not data:
        return Method(L2(), compensator=Linear())
    return replace(pursuit(seed, data), compensator=Reconstruct(seconds=120, seed=seed))


@built_in_method("genetic")
def genetic(seed: int, data: bool) -> Method:
    """Error of the consumers' outputs, searched by a genetic algorithm (Hu et al. 2018)."""
    return Method(Genetic(seed=seed), Global(0.7), LeastSquares())


@built_in_method("hu_ga")
def hu_ga(seed: int, data: bool) -> Method:
    """Genetic, layer by layer, the least sensitive first (Hu et al. 2018)."""
    return Method(Genetic(seed=seed), Sensitivity(), LeastSquares(), one_by_one=True)


@built_in_method("fp_omp_search")
def fp_omp_search(seed: int, data: bool) -> Method:
    """Accuracy after trial cuts of fp_omp between 1x1 convolutions, round by round (Purohit et al. 2022)."""
    return Method(FPOMP(), Search(alpha=0.0, exhaustive=True), Adapters())


@built_in_method("search")
def search(seed: int, data: bool) -> Method:
    """Accuracy after trial cuts, per cost saved, round by round, in the order of `cap`."""
    return Method(CaP(), Search(), LeastSquares())


@built_in_method("dead")
def dead(seed: int, data: bool) -> Method:
    """Units that nothing reads, after masks and penalties in training."""
    return Method(Dead())


@built_in_method("random")
def random(seed: int, data: bool) -> Method:
    """Uniform random choice, the baseline."""
    return Method(Random(seed))
