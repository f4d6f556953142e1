"""Training: score models and classifiers in one call each, and the parts that they are made of."""

from purify_jax.atomic import SaveError
from purify_jax.training import adversarial, augmentation, denoising, feeding
from purify_jax.training.adversarial import DefenseSettings, train_defense
from purify_jax.training.airbench import AirbenchSettings, train_airbench
from purify_jax.training.augmentation import CropAndPurify, random_crop, random_flip
from purify_jax.training.checkpoints import TrainingCheckpoints
from purify_jax.training.classifier import ClassifierSettings, train_classifier
from purify_jax.training.loop import Diverged, FitResult, fit
from purify_jax.training.score_model import (
    DenoiserSettings,
    EDMLoss,
    LogNormal,
    ScoreSettings,
    train_score_model,
)
from purify_jax.training.settings import RunSettings, Settings, Trained
from purify_jax.training.step import (
    ClassificationLoss,
    DSMLoss,
    TrainState,
    flip_at_random,
    init_state,
    scan_steps,
    train_step,
)

__all__ = [
    "AirbenchSettings",
    "ClassificationLoss",
    "ClassifierSettings",
    "CropAndPurify",
    "DSMLoss",
    "DefenseSettings",
    "DenoiserSettings",
    "Diverged",
    "EDMLoss",
    "FitResult",
    "LogNormal",
    "RunSettings",
    "SaveError",
    "ScoreSettings",
    "Settings",
    "TrainState",
    "Trained",
    "TrainingCheckpoints",
    "adversarial",
    "augmentation",
    "denoising",
    "feeding",
    "fit",
    "flip_at_random",
    "init_state",
    "random_crop",
    "random_flip",
    "scan_steps",
    "train_airbench",
    "train_classifier",
    "train_defense",
    "train_score_model",
    "train_step",
]
