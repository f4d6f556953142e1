"""Models: files, what a file's settings make of them, published weights, models that ship, exports."""

from purify_jax.models import diffusion_weights, exporting, pretrained, torch_weights
from purify_jax.models.files import (
    Model,
    check_tensors,
    expected_shapes,
    load_model,
    save_model,
)
from purify_jax.models.headers import ROLES, SCORE_ROLES
from purify_jax.models.methods import (
    METHODS,
    adp_purifier,
    model_purifier,
    step_rule,
)
from purify_jax.models.purification import PUBLISHED
from purify_jax.models.settings import (
    DIFFUSIONS,
    diffusion,
    logits_fn,
    network_logits,
    noise_score,
    score_fn,
    smallest_sigma,
)

__all__ = [
    "DIFFUSIONS",
    "METHODS",
    "PUBLISHED",
    "ROLES",
    "SCORE_ROLES",
    "Model",
    "adp_purifier",
    "check_tensors",
    "diffusion",
    "diffusion_weights",
    "expected_shapes",
    "exporting",
    "load_model",
    "logits_fn",
    "model_purifier",
    "network_logits",
    "noise_score",
    "pretrained",
    "save_model",
    "score_fn",
    "smallest_sigma",
    "step_rule",
    "torch_weights",
]
