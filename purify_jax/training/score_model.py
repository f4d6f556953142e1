"""Trains an energy model, a score network or a denoiser: one call.

Two losses: denoising score matching (Vincent 2011), and that of Karras et al. 2022 (EDM, arXiv 2206.00364)
for denoisers that may be told the noise level.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY
from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from purify_jax import energy, noise
from purify_jax.arrays import per_image
from purify_jax.checks import InputError, check_at_least, check_choice, check_number
from purify_jax.data import Batches, Dataset, as_training_data
from purify_jax.data.iterators import Source
from purify_jax.devices.execution import Execution
from purify_jax.keys import LEVEL, NOISE, draw_each, fold_keys, normal_like, stream_key
from purify_jax.models.methods import check_settings
from purify_jax.models.model import Model
from purify_jax.pytrees import Pytree, static
from purify_jax.training.checkpoints import claim_inputs
from purify_jax.training.loop import minimise
from purify_jax.training.metrics import DenoisedSheet
from purify_jax.training.settings import Settings, Trained, about_training, run_key
from purify_jax.training.step import DSMLoss, first_state
from purify_jax.types import Array, Json, Keys, Params

#: What the network's output is: the g of an energy ½‖x − g(x)‖² (or the energy), or the score itself.
ROLES: Mapping[str, energy.ScoreFactory] = {
    "energy": energy.score_from_energy_network,
    "score": energy.NetworkScore,
}


@dataclasses.dataclass(frozen=True)
class ScoreSettings(Settings):
    """How an energy or score network is trained. Beside the fields of :class:`Settings`:

    sigmas: noise levels > 0, in units of a pixel's range (``noise.geometric(...)``).
    role: "score", the network's output is the score, or "energy", its energy's gradient is.
    scale: how the output becomes the score at σ: "per_sigma", "per_variance" or "unscaled"
      (:mod:`purify_jax.noise`).
    patterns: amplitude of patterns beside the Gaussian noise (``noise.patterns``); 0 for none.

    Raises InputError for an unknown role or scale, or levels that are not positive.
    """

    _: KW_ONLY
    sigmas: Sequence[float] | Array
    role: str = "score"
    scale: str = "per_sigma"
    patterns: float = 0.0
    part: ClassVar[str] = "score model"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("role", self.role, sorted(ROLES))
        check_choice("scale", self.scale, sorted(noise.SCALES))
        levels = np.asarray(self.sigmas, np.float32)
        if levels.ndim != 1 or not levels.size or not (np.isfinite(levels) & (levels > 0)).all():
            raise InputError(f"sigmas: got {levels.tolist()}, expected positive noise levels")
        object.__setattr__(self, "sigmas", tuple(levels.tolist()))

    def recorded(self) -> Json:
        kept = {n: v for n, v in super().recorded().items() if n not in ("role", "sigmas")}
        return {**kept, "sigma_min": min(self.sigmas), "sigma_max": max(self.sigmas)}

    def loss(self, network: nn.Module) -> DSMLoss:
        """The loss of a network with these noise levels."""
        return DSMLoss(
            jnp.asarray(np.asarray(self.sigmas, np.float32)),
            perturb=noise.patterns(self.patterns) if self.patterns else None,
            network=network,
            score_factory=ROLES[self.role],
            scale=noise.SCALES[self.scale],
        )

    def sheet(self, network: nn.Module, data: Dataset | Batches) -> DenoisedSheet:
        """Images denoised by Tweedie's formula at the middle of the noise levels."""

        def tweedie(params: Params, images: Array, sigma: Array) -> Array:
            squares = per_image(sigma**2 * noise.SCALES[self.scale](sigma), images)
            return squares * ROLES[self.role](network, params)(images)

        levels = np.asarray(self.sigmas, np.float32)
        return DenoisedSheet(data, tweedie, float(np.exp(np.log(levels).mean())))

    def read_by_purifiers(self) -> Json:
        """Nothing beside what is recorded."""
        return {}


#: (noisy images, σ ``[batch]``) → what denoising adds to them, D(x; σ) − x.
DisplacementFn = Callable[[Array, Array], Array]


class LogNormal(Pytree):
    """keys ``[batch]`` → σ ``[batch]`` with ln σ ~ N(mean, std²).

    The published mean of −1.2 is for images in [−1, 1]; in [0, 1] the same levels have −1.2 − ln 2.
    """

    mean: float
    std: float

    def __call__(self, keys: Keys) -> Array:
        return jnp.exp(
            self.mean
            + self.std * draw_each(lambda key: jax.random.normal(key, (), jnp.float32), keys)
        )


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
      draw_sigmas: keys → positive σ ``[batch]``, :class:`LogNormal` for one.
      data_std: d, of the data around ½.
    """
    sigmas = draw_sigmas(fold_keys(keys, LEVEL))
    chex.assert_rank([images, sigmas], [4, 1])
    chex.assert_equal_shape_prefix([images, sigmas], 1)
    step = per_image(sigmas, images) * normal_like(fold_keys(keys, NOISE), images)
    # D(x) − y = (D(x) − x) + (x − y).
    error = displacement_fn(images + step, sigmas) + step
    weight = (sigmas**2 + data_std**2) / (sigmas * data_std) ** 2
    return weight * jnp.mean(error.reshape(images.shape[0], -1) ** 2, axis=-1)


def displacement(network: nn.Module, params: Params, images: Array, sigmas: Array) -> Array:
    """D(x; σ) − x by a network; only a network that is ``noise_conditional`` is given σ."""
    given = [sigmas] if getattr(network, "noise_conditional", False) else []
    return jnp.asarray(network.apply({"params": params}, images, *given))


class EDMLoss(Pytree):
    """``denoising_loss`` of a network → displacement; the mean over the batch, a ``TrainLoss``.

    draw_sigmas: keys → σ ``[batch]``, a :class:`LogNormal` for one.
    network: called with (images, σ) if it is ``noise_conditional``, else with images alone. The weights'
      data deviation is its ``data_std``, 0.25 if it has none.
    """

    draw_sigmas: Callable[[Keys], Array]
    network: nn.Module = static()

    def __call__(
        self, params: Params, batch_stats: Params, keys: Keys, images: Array, labels: Array | None
    ) -> tuple[Array, tuple[dict, Params]]:
        displacement_fn = functools.partial(displacement, self.network, params)
        data_std = getattr(self.network, "data_std", 0.25)
        loss = denoising_loss(displacement_fn, keys, images, self.draw_sigmas, data_std).mean()
        return loss, ({"loss": loss}, batch_stats)


@dataclasses.dataclass(frozen=True)
class DenoiserSettings(Settings):
    """How ``train_score_model`` trains a denoiser, noise-conditional or not, with EDM's loss.

    The network is (noisy images, σ) → D(x; σ) − x with a ``data_std``, a ``NoiseConditionalUNet`` say; or
    a network that is not told σ, noisy images → displacement. Beside the fields of :class:`Settings`:

    log_sigma_mean, log_sigma_std: of the noise levels, ln σ ~ N(mean, std²); the published −1.2 for images
      in [−1, 1] is −1.9 for images in [0, 1].
    """

    log_sigma_mean: float = -1.9
    log_sigma_std: float = 1.2
    role: ClassVar[str] = "score"
    part: ClassVar[str] = "denoiser"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("log_sigma_mean", self.log_sigma_mean)
        check_at_least("log_sigma_std", self.log_sigma_std, 0.0)

    def loss(self, network: nn.Module) -> EDMLoss:
        """The loss of a network with these noise levels."""
        return EDMLoss(LogNormal(self.log_sigma_mean, self.log_sigma_std), network=network)

    def sheet(self, network: nn.Module, data: Dataset | Batches) -> DenoisedSheet:
        """Images denoised at the median of the noise levels."""
        moved = functools.partial(displacement, network)
        return DenoisedSheet(data, moved, math.exp(self.log_sigma_mean))

    def read_by_purifiers(self) -> Json:
        """The scaling of the output, and the smallest level: two standard deviations below the median."""
        smallest = math.exp(self.log_sigma_mean - 2 * self.log_sigma_std)
        return {"scale": "per_variance", "sigma_min": smallest}


def train_score_model(
    network: nn.Module,
    dataset: Dataset | Batches | Source,
    settings: ScoreSettings | DenoiserSettings,
    *,
    start: Model | None = None,
    purification: Json | None = None,
    metadata: Json | None = None,
    execution: Execution = Execution(),
) -> Trained:
    """Trains a score or energy network by denoising score matching (Vincent 2011), or a denoiser by EDM's loss.

    Args:
      network: a linen module, images → images (or one number per image, for an energy).
      dataset: images, a data set or batches of ``settings.batch_size`` images
        (:class:`purify_jax.data.Batches`); labels are not used.
      settings: :class:`ScoreSettings`, or :class:`DenoiserSettings` for EDM's loss.
      start: a model of the same network whose averaged parameters to go on from, with a new optimizer
        (``warmup_steps`` spares them its first steps); None for random ones.
      purification: settings that the model file recommends (``models.PUBLISHED`` lists them).
      metadata: more for the model file's header.
      execution: see :func:`purify_jax.training.fit`.

    Returns the model with averaged parameters, and whether training finished; its header says how ``start``
    was trained. Raises InputError for a start of another network, image shape, role or scale, or a work directory
    whose training began with other weights.
    """
    check_settings(purification or {})
    if start is not None:
        _check_same_output(start, settings)
    data = as_training_data(dataset, labeled=False)
    key = run_key(settings.seed, settings.part)
    first = stream_key(key, "initial parameters")
    state = first_state(network, settings.optimizer(), first, data.image_shape, start)
    claim_inputs(execution.workdir, {"start": start})
    state, finished = minimise(
        settings.loss(network),
        state,
        data,
        settings,
        key,
        execution=execution,
        description="energy model" if settings.role == "energy" else settings.part,
        picture=settings.sheet(network, data) if settings.tensorboard else None,
    )
    given = {"purification": dict(purification or {})}
    about = about_training(data, settings.recorded(), metadata, start, **given)
    about = {**about, "training": {**about["training"], **settings.read_by_purifiers()}}
    variables = {"params": state.ema_params}
    return Trained(Model(settings.role, network, variables, data.image_shape, about), finished)


def _check_same_output(start: Model, settings: ScoreSettings | DenoiserSettings) -> None:
    scale = settings.read_by_purifiers().get("scale", getattr(settings, "scale", None))
    before = start.metadata.get("training", {}).get("scale", scale)
    if (start.role, before) != (settings.role, scale):
        raise InputError(
            f"start: a model of role {start.role!r} and scale {before!r}, expected those that are trained, "
            f"{settings.role!r} and {scale!r}"
        )
