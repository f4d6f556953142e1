"""Diffusion networks → denoisers D(x; σ) and scores of the σ-smoothed data, in pixel units.

Published diffusion models live on signed images u = 2x − 1 and on two scales of noise:

- variance exploding, u + s·n, with s = 2σ: EDM's convention, and the one of every function here;
- variance preserving, α(t)·u + √(1 − α(t)²)·n, a rescaled picture of the same with s = √(1 − α²)/α.

This module holds the maps between them, and no other does. A diffusion is a pytree whose leaves
are its network's variables, so it may be an argument of a compiled function:

- ``diffusion(images, sigma)``: the denoiser, the mean of clean images given the noisy ones;
- ``diffusion.score(images, sigma)``: (D(x; σ) − x)/σ², a ``NoiseScore``;
- ``diffusion.noise(signed, sigma)``, ``diffusion.noise_at(state, t)``: the predicted noise ε̂, for
  samplers that work in the diffusion's own variables.

Everywhere ``sigma`` and ``t`` are scalars or ``[batch]``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import TypeAlias, TypeVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from purify_jax.arrays import per_image
from purify_jax.checks import check_at_least, check_count
from purify_jax.pytrees import Partial, Pytree, static
from purify_jax.types import Array, NoiseScore, Params

#: (scaled signed images, condition ``[batch]``) → raw output; a pytree.
NetworkFn: TypeAlias = Callable[[Array, Array], Array]

#: Images on a scale: an array, or one of its bounds.
Pixels = TypeVar("Pixels", Array, np.ndarray, float)


def signed(images: Pixels) -> Pixels:
    """Pixels in [0, 1] → [-1, 1]."""
    return 2.0 * images - 1.0


def pixels(images: Pixels) -> Pixels:
    """Signed images in [-1, 1] → [0, 1]."""
    return 0.5 * (images + 1.0)


class BoundNetwork(Pytree):
    """A linen network with its variables as leaves: (images, condition) → raw output.

    labels: class of the images, for a network with classes: int scalar or ``[batch]``.
    """

    _: KW_ONLY
    variables: Mapping[str, Params]
    labels: int | Array | None = None
    network: nn.Module = static()

    def __call__(self, images: Array, condition: Array) -> Array:
        if self.labels is None:
            output = self.network.apply(self.variables, images, condition)
        else:
            labels = jnp.broadcast_to(jnp.asarray(self.labels), images.shape[:1])
            output = self.network.apply(self.variables, images, condition, labels)
        return jnp.asarray(output)


# --- the variance-preserving schedule ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LinearSchedule:
    """β(t) = β_min + t·(β_max − β_min) on t in [0, 1] (Ho et al. 2020; Song et al. 2021).

    ``num_steps`` discrete steps have β_k = β(k/(N − 1))/N: with the defaults 1e-4 to 0.02, the
    schedule of DDPM, of guided-diffusion and of score_sde alike. Step k is the time (k + 1)/N.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    num_steps: int = 1000

    def __post_init__(self) -> None:
        check_at_least("beta_min", self.beta_min, 0.0)
        check_at_least("beta_max", self.beta_max, self.beta_min)
        check_count("num_steps", self.num_steps)

    def beta(self, t: Array) -> Array:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Array) -> Array:
        return 0.5 * t**2 * (self.beta_max - self.beta_min) + t * self.beta_min

    def mean(self, t: Array) -> Array:
        """α(t), the factor of the clean image."""
        return jnp.exp(-0.5 * self._integral(t))

    def std(self, t: Array) -> Array:
        """√(1 − α(t)²), the noise beside it."""
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def sigma(self, t: Array) -> Array:
        """s(t) = √(1 − α²)/α, the same noise where the clean image has the factor 1."""
        return jnp.sqrt(jnp.expm1(self._integral(t)))

    def time(self, sigma: Array) -> Array:
        """t(s), the inverse of :meth:`sigma`."""
        slope, doubled = self.beta_max - self.beta_min, 2 * jnp.log1p(sigma**2)
        # The root of ½·slope·t² + β_min·t = ln(1 + s²), in the form without a small difference.
        return doubled / (self.beta_min + jnp.sqrt(self.beta_min**2 + slope * doubled))

    def betas(self) -> np.ndarray:
        """β_k of the discrete steps, float64 ``[num_steps]``."""
        return np.linspace(self.beta_min, self.beta_max, self.num_steps) / self.num_steps

    def alphas_bar(self) -> np.ndarray:
        """ᾱ_k = Π (1 − β_i) up to k, the squared factor of the clean image, ``[num_steps]``."""
        return np.cumprod(1 - self.betas())


# --- diffusions -------------------------------------------------------------------------------


class Diffusion(Pytree):
    """What the diffusions share; each says in ``noise`` how its network predicts the noise."""

    schedule = LinearSchedule()

    def noise(self, images: Array, sigma: Array) -> Array:
        """ε̂ in signed images u = clean + s·ε of noise s = ``sigma``, given ``[batch]``."""
        raise NotImplementedError(f"{type(self).__name__}.noise")

    def noise_at(self, state: Array, t: Array) -> Array:
        """ε̂ in a variance-preserving state α(t)·clean + √(1 − α²)·ε."""
        t = _each(t, state)
        return self.noise(state / per_image(self.schedule.mean(t), state), self.schedule.sigma(t))

    def _pixel_noise(self, images: Array, sigma: Array) -> tuple[Array, Array]:
        level = _each(sigma, images)
        return self.noise(signed(images), 2.0 * level), per_image(level, images)

    def __call__(self, images: Array, sigma: Array) -> Array:
        """D(x; σ) = x − σ·ε̂, the mean of the clean pixels given noisy ones."""
        noise, level = self._pixel_noise(images, sigma)
        return images - level * noise

    def score(self, images: Array, sigma: Array) -> Array:
        """∇ log p_σ(x) = (D(x; σ) − x)/σ² = −ε̂/σ."""
        noise, level = self._pixel_noise(images, sigma)
        return -noise / level


def _each(values: object, images: Array) -> Array:
    """Scalar or ``[batch]`` → ``[batch]`` of the images' type."""
    return jnp.broadcast_to(jnp.asarray(values, images.dtype), images.shape[:1])


class EDM(Diffusion):
    """EDM's preconditioning (Karras et al. 2022, arXiv 2206.00364, equation 7, table 1).

    D(u; s) = c_skip·u + c_out·F(c_in·u; ln(s)/4) with c_skip = d²/(s² + d²),
    c_out = s·d/√(s² + d²), c_in = 1/√(s² + d²).

    sigma_data: d, the standard deviation of the signed images.
    """

    network: NetworkFn
    sigma_data: float = static(default=0.5)

    def noise(self, images: Array, sigma: Array) -> Array:
        scale = per_image(jnp.sqrt(sigma**2 + self.sigma_data**2), images)
        output = self.network(images / scale, jnp.log(sigma) / 4)
        # (u − D)/s with s cancelled, so that a small s loses no digits.
        return per_image(sigma, images) * images / scale**2 - self.sigma_data / scale * output


class VP(Diffusion):
    """Continuous variance-preserving ε-prediction: ε̂ = F(state, 999·t) (score_sde, DiffPure).

    The network sees states α(t)·u + √(1 − α²)·n. If it puts out more channels than the images
    have, the first are ε̂.
    """

    network: NetworkFn
    schedule: LinearSchedule = static(default=LinearSchedule())

    def noise(self, images: Array, sigma: Array) -> Array:
        return self.noise_at(images / per_image(_root(sigma), images), self.schedule.time(sigma))

    def noise_at(self, state: Array, t: Array) -> Array:
        label = (self.schedule.num_steps - 1) * _each(t, state)
        return self.network(state, label)[..., : state.shape[-1]]


class DiscreteVP(Diffusion):
    """ε-prediction at integer steps: ε̂ = F(state, k), as DDPM and guided-diffusion are trained.

    A noise level between two steps takes the nearer one (in ln s), as EDM's authors do for such
    networks. Channels after the images' own (a learned variance) are dropped.
    """

    network: NetworkFn
    schedule: LinearSchedule = static(default=LinearSchedule())

    def noise(self, images: Array, sigma: Array) -> Array:
        output = self.network(images / per_image(_root(sigma), images), self.step(sigma))
        return output[..., : images.shape[-1]]

    def step(self, sigma: Array) -> Array:
        """The step k in 0 … num_steps − 1 whose noise is nearest to s = ``sigma``, as a float."""
        alphas_bar = self.schedule.alphas_bar()
        levels = 0.5 * np.log((1 - alphas_bar) / alphas_bar)
        between = jnp.asarray(0.5 * (levels[1:] + levels[:-1]), sigma.dtype)
        return jnp.searchsorted(between, jnp.log(sigma)).astype(sigma.dtype)


class VE(Diffusion):
    """Variance exploding: D(u; s) = u + s·F(u; ln(s/2)) (Karras et al. 2022, table 1)."""

    network: NetworkFn

    def noise(self, images: Array, sigma: Array) -> Array:
        return -self.network(images, jnp.log(0.5 * sigma))


class FromScore(Diffusion):
    """A diffusion whose noise prediction is a score's: ε̂ = −σ·∇ log p_σ(x), in pixel units.

    noise_score: (images in [0, 1], σ ``[batch]``) → ∇ log p_σ. Any model that was trained by denoising
    score matching over several levels has one (``models.noise_score``).
    """

    noise_score: NoiseScore

    def noise(self, images: Array, sigma: Array) -> Array:
        level = 0.5 * sigma
        return -per_image(level, images) * self.noise_score(pixels(images), level)


def _root(sigma: Array) -> Array:
    return jnp.sqrt(1 + sigma**2)


# --- as functions of the library --------------------------------------------------------------


def noise_score(diffusion: Diffusion) -> NoiseScore:
    """(images, σ) → ∇ log p_σ, for the annealed purifiers; a pytree."""
    return Partial(Diffusion.score, diffusion)


class ScoreAt(Pytree):
    """Images → ∇ log p_σ at one noise level σ in pixel units: a ``ScoreFn``."""

    noise_score: NoiseScore
    sigma: float | Array

    def __post_init__(self) -> None:
        self.fill(sigma=jnp.asarray(self.sigma, jnp.float32))

    def __call__(self, images: Array) -> Array:
        return self.noise_score(images, jnp.asarray(self.sigma))
