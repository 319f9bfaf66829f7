"""Which filters matter: one family per file."""

from keras_filterprune.criteria.activity import APoZ as APoZ
from keras_filterprune.criteria.activity import MeanActivation as MeanActivation
from keras_filterprune.criteria.base import Criterion as Criterion
from keras_filterprune.criteria.base import MemberCriterion as MemberCriterion
from keras_filterprune.criteria.dead import Dead as Dead
from keras_filterprune.criteria.distance import FPGM as FPGM
from keras_filterprune.criteria.genetic import Genetic as Genetic
from keras_filterprune.criteria.magnitude import L1 as L1
from keras_filterprune.criteria.magnitude import L2 as L2
from keras_filterprune.criteria.magnitude import BNScale as BNScale
from keras_filterprune.criteria.magnitude import GeometricMean as GeometricMean
from keras_filterprune.criteria.omp import FPOMP as FPOMP
from keras_filterprune.criteria.omp import LRF as LRF
from keras_filterprune.criteria.operator_norm import OperatorNorm as OperatorNorm
from keras_filterprune.criteria.random import Random as Random
from keras_filterprune.criteria.reconstruction import CaP as CaP
from keras_filterprune.criteria.reconstruction import Energy as Energy
from keras_filterprune.criteria.reconstruction import OutputPursuit as OutputPursuit
from keras_filterprune.criteria.similarity import Nystrom as Nystrom
from keras_filterprune.criteria.similarity import Similarity as Similarity
from keras_filterprune.criteria.taylor import Taylor as Taylor
from keras_filterprune.criteria.taylor import TaylorGate as TaylorGate
