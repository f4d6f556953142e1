"""Training of noise-conditional denoisers, weighted as by Karras et al. 2022 (EDM, arXiv 2206.00364)."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from purify_jax.arrays import per_image
from purify_jax.checks import check_at_least, check_number
from purify_jax.data import Batches, Dataset, as_training_data
from purify_jax.data.iterators import Source
from purify_jax.keys import LEVEL, NOISE, fold_keys, normal_like
from purify_jax.models.files import Model
from purify_jax.models.purification import check_settings
from purify_jax.models.versions import versions
from purify_jax.pytrees import Partial, pytree, static
from purify_jax.training import settings as runs
from purify_jax.training.metrics import DenoisedSheet
from purify_jax.training.settings import Settings, Trained
from purify_jax.types import Array, Keys

#: (noisy images, σ ``[batch]``) → what denoising adds to them, D(x; σ) − x.
DisplacementFn = Callable[[Array, Array], Array]


def log_normal(mean: float, std: float) -> Callable[[Keys], Array]:
    """keys ``[batch]`` → σ ``[batch]`` with ln σ ~ N(mean, std²).

    The published mean of −1.2 is for images in [−1, 1]; in [0, 1] the same levels have −1.2 − ln 2.
    """
    return Partial(_log_normal, mean, std)


def _log_normal(mean: float, std: float, keys: Keys) -> Array:
    return jnp.exp(mean + std * jax.vmap(jax.random.normal)(keys))


def denoising_loss(
    displacement_fn: DisplacementFn,
    keys: Keys,
    images: Array,
    draw_sigmas: Callable[[Keys], Array],
    data_std: float = 0.25,
) -> Array:
    """(σ² + d²)/(σ d)² · mean over pixels of (D(y + σε; σ) − y)², one per image ``[batch]``.

    The weight is one over the error that the best denoiser of Gaussian data of the standard
    deviation d leaves, so that such data have the loss 1 at every σ, and photographs less.

    Args:
      displacement_fn: (x, σ) → D(x; σ) − x.
      keys: ``[batch]``; image i's level and noise depend on key i alone.
      images: ``[batch, h, w, c]`` in [0, 1], the y above.
      draw_sigmas: keys → positive σ ``[batch]``, :func:`log_normal` for one.
      data_std: d, of the data around ½.
    """
    sigmas = draw_sigmas(fold_keys(keys, LEVEL))
    step = per_image(sigmas, images) * normal_like(fold_keys(keys, NOISE), images)
    # D(x) − y = (D(x) − x) + (x − y).
    error = displacement_fn(images + step, sigmas) + step
    weight = (sigmas**2 + data_std**2) / (sigmas * data_std) ** 2
    return weight * jnp.mean(error.reshape(images.shape[0], -1) ** 2, axis=-1)


@pytree
class EDMLoss:
    """See :func:`edm_loss`."""

    draw_sigmas: Any
    network: nn.Module = static()

    def __call__(self, params, batch_stats, keys, images, labels):
        variables = {"params": params}
        told = getattr(self.network, "noise_conditional", False)
        displacement_fn: Any = lambda x, sigmas: self.network.apply(
            variables, x, *([sigmas] if told else [])
        )
        data_std = getattr(self.network, "data_std", 0.25)
        loss = denoising_loss(displacement_fn, keys, images, self.draw_sigmas, data_std).mean()
        return loss, ({"loss": loss}, batch_stats)


def edm_loss(network: nn.Module, draw_sigmas: Callable[[Keys], Array]) -> EDMLoss:
    """:func:`denoising_loss` of a network → displacement, for ``training.scan_steps``.

    A network that is ``noise_conditional`` is called with (images, σ), any other with images alone; the
    weights' data deviation is the network's ``data_std``, 0.25 if it has none.
    """
    return EDMLoss(network=network, draw_sigmas=draw_sigmas)


def train_denoiser(
    network: nn.Module,
    dataset: Dataset | Batches | Source,
    settings: Settings,
    *,
    log_sigma_mean: float = -1.9,
    log_sigma_std: float = 1.2,
    purification: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    workdir: str | Path | None = None,
    progress: bool = True,
    stream: bool | None = None,
    shard_parameters: bool = False,
    tensorboard: bool = False,
) -> Trained:
    """Trains a denoiser, noise-conditional or not, with EDM's loss: ln σ ~ N(mean, std²), σ in [0, 1] units.

    Args:
      network: (noisy images, σ) → D(x; σ) − x with a ``data_std``, a ``NoiseConditionalUNet`` say; or a
        network that is not told σ, noisy images → displacement.
      dataset: images, a data set or anybody's batches; labels are not looked at.
      settings: steps, batch size, learning rate and the like.
      log_sigma_mean, log_sigma_std: of the noise levels; the published −1.2 for images in [−1, 1] is
        −1.9 here.
      purification, metadata: see :func:`purify_jax.training.train_score_model`.
      workdir: a folder for checkpoints and metrics; a run that was killed continues from it.
      tensorboard: see :func:`purify_jax.training.train_score_model`.

    Returns the model (role "score", with averaged parameters), and whether training finished.
    """
    check_at_least("log_sigma_std", log_sigma_std, 0.0)
    check_number("log_sigma_mean", log_sigma_mean)
    check_settings(purification or {})
    data, picture = as_training_data(dataset, labeled=False), None
    if tensorboard:
        told = getattr(network, "noise_conditional", False)
        moved: Any = lambda params, x, sigma: network.apply(
            {"params": params}, x, *([sigma] * told)
        )
        picture = DenoisedSheet(data, moved, math.exp(log_sigma_mean))
    state, finished = runs.run(
        edm_loss(network, log_normal(log_sigma_mean, log_sigma_std)),
        network,
        data,
        settings,
        runs.run_key(settings.seed, "denoiser"),
        workdir=workdir,
        description="denoiser",
        progress=progress,
        stream=stream,
        shard_parameters=shard_parameters,
        tensorboard=tensorboard,
        picture=picture,
    )
    about = {
        **runs.name_of(data),
        "purification": dict(purification or {}),
        "training": {"log_sigma_mean": log_sigma_mean, "log_sigma_std": log_sigma_std,
                     **dataclasses.asdict(settings)},
        "versions": versions(),
        **(metadata or {}),
    }  # fmt: skip
    # What the purifiers read: the scaling of the output, and the smallest level, two standard
    # deviations below the median.
    smallest = math.exp(log_sigma_mean - 2 * log_sigma_std)
    about["training"] = {**about["training"], "scale": "per_variance", "sigma_min": smallest}
    variables = {"params": state.ema_params}
    return Trained(Model("score", network, variables, data.image_shape, about), finished)
