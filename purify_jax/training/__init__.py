"""Training: score models and classifiers in one call each, and the parts that they are made of."""

from purify_jax.atomic import SaveError
from purify_jax.training import adversarial, augmentation, denoising, feeding
from purify_jax.training.adversarial import train_defense
from purify_jax.training.airbench import train_airbench
from purify_jax.training.augmentation import crop_and_purify, random_crop, random_flip
from purify_jax.training.checkpoints import TrainingCheckpoints
from purify_jax.training.classifier import train_classifier
from purify_jax.training.edm import train_denoiser
from purify_jax.training.loop import Diverged, FitResult, fit
from purify_jax.training.score_model import train_score_model
from purify_jax.training.settings import Settings, Trained
from purify_jax.training.step import (
    TrainState,
    adam,
    classification_loss,
    dsm_loss,
    init_state,
    scan_steps,
    train_step,
)

__all__ = [
    "Diverged",
    "FitResult",
    "SaveError",
    "Settings",
    "TrainState",
    "Trained",
    "TrainingCheckpoints",
    "adam",
    "adversarial",
    "augmentation",
    "classification_loss",
    "crop_and_purify",
    "denoising",
    "dsm_loss",
    "feeding",
    "fit",
    "init_state",
    "random_crop",
    "random_flip",
    "scan_steps",
    "train_airbench",
    "train_classifier",
    "train_defense",
    "train_denoiser",
    "train_score_model",
    "train_step",
]
