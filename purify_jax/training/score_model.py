"""Trains an energy model or a score network by denoising score matching: one call."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from purify_jax import energy, noise
from purify_jax.checks import InputError, check_choice
from purify_jax.data import Batches, Dataset, as_training_data
from purify_jax.data.iterators import Source
from purify_jax.models.files import Model
from purify_jax.models.purification import check_settings
from purify_jax.models.versions import versions
from purify_jax.training import settings as runs
from purify_jax.training.metrics import DenoisedSheet
from purify_jax.training.settings import Settings, Trained
from purify_jax.training.step import dsm_loss
from purify_jax.types import Array

#: What the network's output is: the g of an energy ½‖x − g(x)‖² (or the energy), or the score itself.
ROLES: Mapping[str, energy.ScoreFactory] = {
    "energy": energy.score_from_energy_network,
    "score": energy.score_from_network,
}


def train_score_model(
    network: nn.Module,
    dataset: Dataset | Batches | Source,
    settings: Settings,
    *,
    sigmas: Sequence[float] | Array,
    role: str = "score",
    scale: str = "per_sigma",
    patterns: float = 0.0,
    purification: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    workdir: str | Path | None = None,
    progress: bool = True,
    stream: bool | None = None,
    shard_parameters: bool = False,
    tensorboard: bool = False,
) -> Trained:
    """Denoising score matching (Vincent 2011) of a network on a data set; noise-unconditional.

    Args:
      network: a linen module, images → images (or one number per image, for an energy).
      dataset: images; labels are not looked at. A data set, or anybody's batches of
        ``settings.batch_size`` images (:class:`purify_jax.data.Batches` says what they may be).
      settings: steps, batch size, learning rate and the like.
      sigmas: noise levels > 0, in units of a pixel's range (``noise.geometric(...)``).
      role: "score", the network's output is the score, or "energy", its energy's gradient is.
      scale: how the output becomes the score at σ: "per_sigma", "per_variance" or "unscaled"
        (:mod:`purify_jax.noise`).
      patterns: amplitude of patterns beside the Gaussian noise (``noise.patterns``); 0 for none.
      purification: settings that the model file recommends (``models.PUBLISHED`` lists them).
      metadata: more for the model file's header.
      workdir: a folder for checkpoints and metrics; a run that was killed continues from it.
      progress, stream, shard_parameters: see :func:`purify_jax.training.fit`.
      tensorboard: also write TensorBoard's events (loss, and eight denoised images at every save) into
        ``workdir/tensorboard``; needs the package tensorboardX.

    Returns the model with averaged parameters, and whether training finished. Raises InputError for
    an unknown role or scale, or levels that are not positive.
    """
    for name, value, known in (("role", role, ROLES), ("scale", scale, noise.SCALES)):
        check_choice(name, value, sorted(known))
    check_settings(purification or {})
    levels = np.asarray(sigmas, np.float32)
    if levels.ndim != 1 or not levels.size or not (np.isfinite(levels) & (levels > 0)).all():
        raise InputError(f"sigmas: got {levels.tolist()}, expected positive noise levels")
    data = as_training_data(dataset, labeled=False)
    perturb = noise.patterns(patterns) if patterns else None
    loss = dsm_loss(network, ROLES[role], jnp.asarray(levels), noise.SCALES[scale], perturb)
    picture = None
    if tensorboard:
        # Tweedie: x + σ² s(x, σ), at the middle of the levels.
        squares = lambda sigma: (sigma**2 * noise.SCALES[scale](sigma))[:, None, None, None]
        score = lambda params, x: ROLES[role](network, params)(x)
        moved = lambda params, x, sigma: squares(sigma) * score(params, x)
        picture = DenoisedSheet(data, moved, float(np.exp(np.log(levels).mean())))
    state, finished = runs.run(
        loss,
        network,
        data,
        settings,
        runs.run_key(settings.seed, "score model"),
        workdir=workdir,
        description="energy model" if role == "energy" else "score network",
        progress=progress,
        stream=stream,
        shard_parameters=shard_parameters,
        tensorboard=tensorboard,
        picture=picture,
    )
    training = {"scale": scale, "sigma_min": float(levels.min()), "sigma_max": float(levels.max())}
    about = {
        **runs.name_of(data),
        "purification": dict(purification or {}),
        "training": {**training, "patterns": patterns, **dataclasses.asdict(settings)},
        "versions": versions(),
        **(metadata or {}),
    }
    variables = {"params": state.ema_params}
    return Trained(Model(role, network, variables, data.image_shape, about), finished)
