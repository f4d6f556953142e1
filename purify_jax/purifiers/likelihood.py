"""A purifier that climbs a diffusion's likelihood instead of running it backwards."""

from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp
import optax

from purify_jax.checks import check_at_least
from purify_jax.keys import draw_each, fold_keys, normal_like, stream
from purify_jax.purifiers.diffpure import DiffusionPurifier
from purify_jax.purifiers.loop import step_info
from purify_jax.pytrees import static
from purify_jax.types import Array, Carry, Keys

#: eps inside the root: the derivative stays finite where a gradient is exactly 0.
_ADAM = optax.scale_by_adam(0.9, 0.999, eps=0.0, eps_root=1e-16)


class LikelihoodMaximisation(DiffusionPurifier):
    """LM: Adam steps in the image that lower the denoising error ‖D(x + σn; σ) − x‖².

    The denoising error bounds the negative log-likelihood (Chen et al. 2023, arXiv 2305.15241;
    ScoreOpt, Zhang et al. 2023, arXiv 2307.04333). Each step draws its own n and a
    σ uniform in ``sigma_range``, in pixel units: the published 0.4 to 0.6, with steps of 0.1, are in
    [-1, 1]. The gradient goes through the denoiser.
    """

    _: KW_ONLY
    num_steps: int = static(default=5)
    sigma_range: tuple[float, float] = (0.2, 0.3)
    step_size: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("sigma_range", self.sigma_range[0], 1e-6)
        check_at_least("sigma_range", self.sigma_range[1], self.sigma_range[0])
        check_at_least("step_size", self.step_size, 0.0)

    def start(self, keys: Keys, images: Array) -> Carry:
        return images, _ADAM.init(images)

    def step(self, keys: Keys, carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array]]:
        (x, state), keys = carry, fold_keys(keys, index)
        low, high = self.sigma_range
        draw = lambda key: jax.random.uniform(key, (), x.dtype, minval=low, maxval=high)
        sigma = draw_each(draw, stream(keys, "level"))
        noise = normal_like(stream(keys, "noise"), x)
        gradient, score = jax.grad(self._error, has_aux=True)(x, sigma, noise)
        # With respect to signed images, whose Adam has the eps 1e-8.
        with jax.numpy_dtype_promotion("standard"):  # optax raises a number to an integer array
            direction, state = _ADAM.update(0.5 * gradient, state)
        return (x - self.step_size * direction, state), step_info(x, self.step_size, score)

    def _error(self, x: Array, sigma: Array, noise: Array) -> tuple[Array, Array]:
        level = sigma.reshape(-1, 1, 1, 1)
        difference = self.diffusion(x + level * noise, sigma) - x
        # Signed images have twice the difference; the mean is over one image's pixels.
        return jnp.sum(jnp.mean((2 * difference) ** 2, axis=(1, 2, 3))), difference / level**2
