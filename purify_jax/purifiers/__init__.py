"""Purifiers: (keys, images) → (purified images of every restart, diagnostics).

The paper's (:func:`purifier`), Markov chains, diffusions, and filters as controls; all share one loop
over restarts and steps and are pytrees.
"""

from purify_jax.purifiers import diffpure, guidance, likelihood
from purify_jax.purifiers.adp import (
    ADP,
    PublishedPixelScaling,
    published_pixel_scaling,
    purifier,
)
from purify_jax.purifiers.chains import MALA, Langevin, langevin, mala
from purify_jax.purifiers.compression import jpeg
from purify_jax.purifiers.diffpure import DiffusionPurifier, diffusion_purifier
from purify_jax.purifiers.diffusions import (
    Annealed,
    GradualNoise,
    LadderPurifier,
    ProbabilityFlow,
    ReverseSDE,
    annealed,
    denoise,
    gradual,
    probability_flow,
    reverse_sde,
    tweedie,
)
from purify_jax.purifiers.filters import filtered, gaussian_blur, identity
from purify_jax.purifiers.loop import (
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
    "MALA",
    "Adaptive",
    "Annealed",
    "Constant",
    "Curvature",
    "DiffusionPurifier",
    "Filter",
    "FiniteDifference",
    "GradualNoise",
    "HeldConstant",
    "JacobianVectorProduct",
    "LadderPurifier",
    "Langevin",
    "ProbabilityFlow",
    "PublishedPixelScaling",
    "Purifier",
    "ReverseSDE",
    "Secant",
    "StepRule",
    "SteppedPurifier",
    "annealed",
    "denoise",
    "diffpure",
    "diffusion_purifier",
    "filtered",
    "gaussian_blur",
    "gradual",
    "guidance",
    "identity",
    "is_deterministic",
    "jpeg",
    "langevin",
    "likelihood",
    "mala",
    "probability_flow",
    "published_pixel_scaling",
    "purifier",
    "reverse_sde",
    "score_of",
    "tweedie",
]
