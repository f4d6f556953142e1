"""Purifiers: (keys, images) → (purified images of every restart, diagnostics).

The paper's (:class:`ADP`), Markov chains, ladders of noise levels, diffusions, and filters as controls. All
share one loop over restarts and steps, and are pytrees.
"""

from purify_jax.purifiers.adp import ADP, PublishedPixelScaling
from purify_jax.purifiers.chains import MALA, Langevin
from purify_jax.purifiers.compression import jpeg
from purify_jax.purifiers.diffpure import (
    DDIM,
    DiffPureODE,
    DiffPureSDE,
    DiffusionPurifier,
    VPPurifier,
)
from purify_jax.purifiers.filters import gaussian_blur, identity
from purify_jax.purifiers.guidance import GDMP
from purify_jax.purifiers.ladders import (
    Annealed,
    Denoiser,
    GradualNoise,
    LadderPurifier,
    ProbabilityFlow,
    ReverseSDE,
    tweedie,
)
from purify_jax.purifiers.likelihood import LikelihoodMaximisation
from purify_jax.purifiers.loop import (
    ClippedPurifier,
    Filter,
    Purifier,
    SteppedPurifier,
    is_deterministic,
    score_of,
)
from purify_jax.purifiers.step_rules import (
    Adaptive,
    Constant,
    Curvature,
    FiniteDifference,
    HeldConstant,
    JacobianVectorProduct,
    Secant,
    StepRule,
)

__all__ = [
    "ADP",
    "DDIM",
    "GDMP",
    "MALA",
    "Adaptive",
    "Annealed",
    "ClippedPurifier",
    "Constant",
    "Curvature",
    "Denoiser",
    "DiffPureODE",
    "DiffPureSDE",
    "DiffusionPurifier",
    "Filter",
    "FiniteDifference",
    "GradualNoise",
    "HeldConstant",
    "JacobianVectorProduct",
    "LadderPurifier",
    "Langevin",
    "LikelihoodMaximisation",
    "ProbabilityFlow",
    "PublishedPixelScaling",
    "Purifier",
    "ReverseSDE",
    "Secant",
    "StepRule",
    "SteppedPurifier",
    "VPPurifier",
    "gaussian_blur",
    "identity",
    "is_deterministic",
    "jpeg",
    "score_of",
    "tweedie",
]
