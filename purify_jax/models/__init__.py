"""Models: files, what a file's settings make of them, published weights, models that ship, exports."""

from purify_jax.models import exporting, pretrained, torch_weights
from purify_jax.models.files import (
    ROLES,
    Model,
    check_tensors,
    expected_shapes,
    load_model,
    save_model,
)
from purify_jax.models.purification import PUBLISHED
from purify_jax.models.settings import (
    METHODS,
    adp_purifier,
    logits_fn,
    model_purifier,
    network_logits,
    noise_score,
    score_fn,
    smallest_sigma,
    step_rule,
)

__all__ = [
    "METHODS",
    "PUBLISHED",
    "ROLES",
    "Model",
    "adp_purifier",
    "check_tensors",
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
