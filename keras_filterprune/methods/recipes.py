"""The registered methods, one small function each, in the order of the table of methods."""

from __future__ import annotations

from dataclasses import replace

from keras_filterprune.allocators import CrossLayer, Global, Search, Sensitivity, Tolerance
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
    Dependency,
    Energy,
    Excitation,
    ForwardCaP,
    Genetic,
    GeometricMean,
    GroupFisher,
    Lasso,
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
    """Euclidean norm of a filter (Li et al. 2017)."""
    return Method(L2())


@built_in_method("clr")
def clr(seed: int, data: bool) -> Method:
    """Widths by one ranking of all weights per cost of their layer (after Lin et al. 2022: filters by `l1`)."""
    return Method(L1(), CrossLayer())


@built_in_method("fpgm")
def fpgm(seed: int, data: bool) -> Method:
    """Distance to the geometric median of the layer's filters (He et al. 2019)."""
    return Method(FPGM())


@built_in_method("bn_scale")
def bn_scale(seed: int, data: bool) -> Method:
    """Batch normalization scale, ranked globally (Liu et al. 2017)."""
    return Method(BNScale(), Global(0.0))


@built_in_method("dependency")
def dependency(seed: int, data: bool) -> Method:
    """Batch normalization scale times what reads it, ranked globally (after Zhao et al. 2020: one cut)."""
    return Method(Dependency(), Global(0.0))


@built_in_method("fp_omp")
def fp_omp(seed: int, data: bool) -> Method:
    """Orthogonal matching pursuit over the filters (after Purohit et al. 2022: no 1x1 convolutions).

    The selection is the paper's, with and without data; so is the compensation with `compensate="adapter"`.
    """
    return Method(FPOMP(), compensator=LeastSquares() if data else Linear())


@built_in_method("lrf")
def lrf(seed: int, data: bool) -> Method:
    """Linearly replaceable filters go first (after Joo et al. 2021: no 1x1 convolutions)."""
    return Method(LRF(), compensator=LeastSquares() if data else Linear())


@built_in_method("fp_omp_layerwise")
def fp_omp_layerwise(seed: int, data: bool) -> Method:
    """As fp_omp between 1x1 convolutions, output and input side of one layer after the other (Purohit et al. 2022).

    The last layer is first, and `finetune=` trains after each side. With inputs, least squares refits besides.
    """
    return Method(FPOMP(), compensator=Adapters(), one_by_one="last_first")


@built_in_method("lrf_layerwise")
def lrf_layerwise(seed: int, data: bool) -> Method:
    """As lrf between 1x1 convolutions, output and input side of one layer after the other (Joo et al. 2021)."""
    return Method(LRF(), compensator=Adapters(), one_by_one="last_first")


@built_in_method("similarity")
def similarity(seed: int, data: bool) -> Method:
    """Of two filters of nearly equal pattern one goes; all pairs (after Singh and Plumbley 2022: the smaller)."""
    return Method(Similarity(), compensator=LeastSquares() if data else Merge())


@built_in_method("nystrom")
def nystrom(seed: int, data: bool) -> Method:
    """As similarity, from the similarities to a few filters (after Singh and Plumbley 2023: the smaller goes)."""
    return Method(Nystrom(), compensator=LeastSquares() if data else Merge())


@built_in_method("operator_norm")
def operator_norm(seed: int, data: bool) -> Method:
    """Share in the direction in which filters differ most (after Singh and Plumbley 2023: squares are summed)."""
    return Method(OperatorNorm())


@built_in_method("geometric_mean")
def geometric_mean(seed: int, data: bool) -> Method:
    """Distance to the geometric mean of absolute weights, a baseline (Singh and Plumbley 2023)."""
    return Method(GeometricMean())


@built_in_method("taylor")
def taylor(seed: int, data: bool) -> Method:
    """Change of the loss with a filter's weights, to first order (Molchanov et al. 2019)."""
    return Method(Taylor())


@built_in_method("taylor_group")
def taylor_group(seed: int, data: bool) -> Method:
    """As taylor, of what a filter's weights do together (Molchanov et al. 2019)."""
    return Method(Taylor(group=True))


@built_in_method("taylor_gate")
def taylor_gate(seed: int, data: bool) -> Method:
    """Change of the loss with a filter's channels, to first order (after Molchanov et al. 2019: ranked per cost)."""
    return Method(TaylorGate(), Global())


@built_in_method("group_fisher")
def group_fisher(seed: int, data: bool) -> Method:
    """Squared change of each sample's loss with coupled channels, per memory (after Liu et al. 2021: one cut)."""
    return Method(GroupFisher(), Global(0.0))


@built_in_method("apoz")
def apoz(seed: int, data: bool) -> Method:
    """How often a filter is not zero (Hu et al. 2016)."""
    return Method(APoZ())


@built_in_method("mean_activation")
def mean_activation(seed: int, data: bool) -> Method:
    """Mean of a filter's activations (Molchanov et al. 2017)."""
    return Method(MeanActivation())


@built_in_method("excitation")
def excitation(seed: int, data: bool) -> Method:
    """Mean of the gate that multiplies a channel, where there is one (after Chang et al. 2020: no gates are added)."""
    return Method(Excitation())


@built_in_method("energy")
def energy(seed: int, data: bool) -> Method:
    """Share of the consumers' output variance (ours)."""
    return Method(Energy(), Global(0.7), LeastSquares())


@built_in_method("lasso")
def lasso(seed: int, data: bool) -> Method:
    """Channels that a LASSO over the consumers' inputs keeps (after He et al. 2017: inputs of the original)."""
    return Method(Lasso(), compensator=LeastSquares())


@built_in_method("cap")
def cap(seed: int, data: bool) -> Method:
    """Error of the consumers' outputs after least squares (after Xie et al. 2021: backward, one ranking)."""
    return Method(CaP(), Global(0.7), LeastSquares())


@built_in_method("cap_search")
def cap_search(seed: int, data: bool) -> Method:
    """As few channels as accuracy allows, layer by layer, selected forwards (after Xie et al. 2021: a budget is met).

    The floor of the accuracy falls from layer to layer, as far as the budget needs. The loss allowed is given by
    `Tolerance(drop=)`.
    """
    return Method(ForwardCaP(), Tolerance(), LeastSquares(rectified=False))


@built_in_method("pursuit")
def pursuit(seed: int, data: bool) -> Method:
    """Error of the consumers' outputs after least squares, weighed by the network's, in two rounds (ours).

    Its settings were chosen on training images.
    """
    return Method(OutputPursuit(), Global(0.7), LeastSquares(), rounds=2)


@built_in_method("auto")
def auto(seed: int, data: bool) -> Method:
    """The best that was measured: `pursuit`, then the original teaches; without data `l2` and `linear` (ours).

    Figures are in examples/benchmarks/no_training.py.
    """
    if not data:
        return Method(L2(), compensator=Linear())
    return replace(pursuit(seed, data), compensator=Reconstruct(seconds=120, seed=seed))


@built_in_method("genetic")
def genetic(seed: int, data: bool) -> Method:
    """Error of the consumers' outputs, searched by a genetic algorithm (after Hu et al. 2018: layers at once)."""
    return Method(Genetic(seed=seed), Global(0.7), LeastSquares())


@built_in_method("hu_ga")
def hu_ga(seed: int, data: bool) -> Method:
    """Genetic, layer by layer, the least sensitive first (after Hu et al. 2018: refitted)."""
    return Method(Genetic(seed=seed), Sensitivity(), LeastSquares(), one_by_one=True)


@built_in_method("fp_omp_search")
def fp_omp_search(seed: int, data: bool) -> Method:
    """Accuracy after trial cuts between 1x1 convolutions, round by round (after Purohit et al. 2022: refitted)."""
    return Method(FPOMP(), Search(alpha=0.0, exhaustive=True), Adapters())


@built_in_method("search")
def search(seed: int, data: bool) -> Method:
    """Accuracy after trial cuts, per cost saved, round by round, in the order of `cap` (ours)."""
    return Method(CaP(), Search(), LeastSquares())


@built_in_method("balanced")
def balanced(seed: int, data: bool) -> Method:
    """Each layer cut to one loss increase that meets the budget, by `l1` (after Li et al. 2020: trials refitted)."""
    return Method(L1(), Tolerance(floor="per_layer", measure="loss"))


@built_in_method("dead")
def dead(seed: int, data: bool) -> Method:
    """Units that nothing reads, after masks and penalties in training (ours)."""
    return Method(Dead())


@built_in_method("random")
def random(seed: int, data: bool) -> Method:
    """Uniform random choice, the baseline (ours)."""
    return Method(Random(seed))
