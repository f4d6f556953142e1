"""Networks of diffusion models, called with (images, condition, ...); the raw output comes out.

What the condition is, and what the output means, is said by :mod:`purify_jax.diffusions`.
"""

from purify_jax.networks.diffusion.adm import ADM
from purify_jax.networks.diffusion.ddpmpp import DDPMpp
from purify_jax.networks.diffusion.song_unet import SongUNet, edm_ncsnpp

__all__ = ["ADM", "DDPMpp", "SongUNet", "edm_ncsnpp"]
