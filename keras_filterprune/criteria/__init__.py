"""Which filters matter: one family per file."""

from keras_filterprune.criteria.activity import ActivationCriterion, APoZ, Excitation, MeanActivation
from keras_filterprune.criteria.base import Criterion, MemberCriterion, read_filters
from keras_filterprune.criteria.dead import Dead
from keras_filterprune.criteria.dependency import Dependency
from keras_filterprune.criteria.distance import FPGM
from keras_filterprune.criteria.fisher import GroupFisher
from keras_filterprune.criteria.genetic import Genetic
from keras_filterprune.criteria.lasso import Lasso
from keras_filterprune.criteria.magnitude import L1, L2, BNScale, GeometricMean
from keras_filterprune.criteria.omp import FPOMP, LRF
from keras_filterprune.criteria.operator_norm import OperatorNorm
from keras_filterprune.criteria.random import Random
from keras_filterprune.criteria.reconstruction import CaP, Energy, ForwardCaP, OutputPursuit
from keras_filterprune.criteria.similarity import Nystrom, Similarity
from keras_filterprune.criteria.taylor import Taylor, TaylorGate
from keras_filterprune.graph import Group, Member
from keras_filterprune.probe import Weights
from keras_filterprune.probe.data import Samples

__all__ = [
    "FPGM",
    "FPOMP",
    "L1",
    "L2",
    "LRF",
    "APoZ",
    "ActivationCriterion",
    "BNScale",
    "CaP",
    "Criterion",
    "Dead",
    "Dependency",
    "Energy",
    "Excitation",
    "ForwardCaP",
    "Genetic",
    "GeometricMean",
    "Group",
    "GroupFisher",
    "Lasso",
    "MeanActivation",
    "Member",
    "MemberCriterion",
    "Nystrom",
    "OperatorNorm",
    "OutputPursuit",
    "Random",
    "Samples",
    "Similarity",
    "Taylor",
    "TaylorGate",
    "Weights",
    "read_filters",
]
