"""Models: files, what a file's settings make of them, published weights, models that ship, exports."""

from purify_jax.models import exporting, pretrained, torch_weights
from purify_jax.models.files import (
    check_tensors,
    expected_shapes,
    load_model,
    match_classes,
    num_outputs,
    save_model,
)
from purify_jax.models.headers import ROLES, SCORE_ROLES
from purify_jax.models.methods import (
    METHODS,
    PUBLISHED,
    adp_purifier,
    check_settings,
    chosen_settings,
    model_purifier,
    step_rule,
    with_one_restart,
)
from purify_jax.models.model import Model
from purify_jax.models.settings import (
    DIFFUSIONS,
    NetworkLogits,
    accuracies_by_normalisation,
    diffusion,
    logits_fn,
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
    "NetworkLogits",
    "accuracies_by_normalisation",
    "adp_purifier",
    "check_settings",
    "check_tensors",
    "chosen_settings",
    "diffusion",
    "expected_shapes",
    "exporting",
    "load_model",
    "logits_fn",
    "match_classes",
    "model_purifier",
    "noise_score",
    "num_outputs",
    "pretrained",
    "save_model",
    "score_fn",
    "smallest_sigma",
    "step_rule",
    "torch_weights",
    "with_one_restart",
]
