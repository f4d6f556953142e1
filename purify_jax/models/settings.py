"""Saved models → the functions that the library works with."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from purify_jax import diffusions, energy, noise
from purify_jax.arrays import per_image
from purify_jax.checks import InputError
from purify_jax.diffusions import BoundNetwork, Diffusion
from purify_jax.models.model import Model
from purify_jax.networks import ADM
from purify_jax.networks.residual import CIFAR10_MEAN, CIFAR10_STD, IMAGENET_MEAN, IMAGENET_STD
from purify_jax.pytrees import Pytree, jit, static
from purify_jax.types import Array, LogitsFn, NoiseScore, Params, ScoreFn

#: What ``metadata["diffusion"]["form"]`` may say of a model of the role "diffusion".
DIFFUSIONS: Mapping[str, Callable[..., Diffusion]] = {
    "edm": diffusions.EDM,
    "vp": diffusions.VP,
    "discrete_vp": diffusions.DiscreteVP,
    "ve": diffusions.VE,
}
#: σ → what a network's output is multiplied by: one of ``noise.SCALES``.
Scale: TypeAlias = Callable[[Array], Array]
#: σ in pixel units at which a diffusion serves as one score, unless its file says another.
REFERENCE_SIGMA = 0.1


def score_fn(model: Model) -> ScoreFn:
    """The score of an energy or score model; of a diffusion, at one σ. InputError for a classifier."""
    if model.role == "energy":
        return energy.score_from_energy_network(model.network, model.params)
    if model.role == "score":
        return energy.NetworkScore(model.network, model.params)
    if model.role == "diffusion":
        given = model.metadata.get("diffusion", {}).get("reference_sigma", REFERENCE_SIGMA)
        return diffusions.ScoreAt(diffusions.noise_score(diffusion(model)), given)
    raise InputError(f"model: got a {model.role}, expected an energy, score or diffusion model")


def diffusion(model: Model, labels: int | Array | None = None) -> Diffusion:
    """A model as a diffusion: a denoiser D(x; σ) and what diffusion purifiers ask of it.

    Of the role "diffusion", by the form in its metadata; an energy or score model by its
    :func:`noise_score`. Raises InputError for a classifier or an unknown form, and without labels
    for an ADM with classes, which has no image without one.

    labels: classes of the images, int scalar or ``[batch]``, for a network with classes.
    """
    if model.role != "diffusion":
        return diffusions.FromScore(noise_score=noise_score(model))
    given = dict(model.metadata.get("diffusion", {}))
    form = str(given.get("form"))
    if form not in DIFFUSIONS:
        raise InputError(
            f"model: its file gives the diffusion {form!r}, expected one of {sorted(DIFFUSIONS)} "
            "under metadata.diffusion.form"
        )
    if labels is None and isinstance(model.network, ADM) and model.network.num_classes:
        raise InputError(
            f"labels: not given, expected a class of the ADM's {model.network.num_classes}: "
            "models.diffusion(model, labels=...)"
        )
    bound = BoundNetwork(variables=dict(model.variables), labels=labels, network=model.network)
    more = {"sigma_data": given["sigma_data"]} if "sigma_data" in given else {}
    return DIFFUSIONS[form](network=bound, **more)


def noise_score(model: Model) -> NoiseScore:
    """(images, σ) → score of the σ-smoothed data, by the scaling the model was trained with.

    Raises InputError for a classifier, or a model whose file does not say how it was trained.
    """
    if model.role == "diffusion":
        return diffusions.noise_score(diffusion(model))
    name = model.metadata.get("training", {}).get("scale")
    if name not in noise.SCALES:
        raise InputError(
            f"model: its file gives the scale {name!r}, expected one of {sorted(noise.SCALES)} "
            "under metadata.training.scale"
        )
    if getattr(model.network, "noise_conditional", False):
        return ConditionalScore(model.params, network=model.network, scale=noise.SCALES[name])
    return ScaledScore(score_fn(model), scale=noise.SCALES[name])


class ConditionalScore(Pytree):
    """The score of a network that is told σ, (images, σ) → scale(σ)·f(x, σ); see :func:`noise_score`."""

    params: Params
    network: nn.Module = static()
    scale: Scale = static()

    def __call__(self, images: Array, sigma: Array) -> Array:
        sigma = jnp.asarray(sigma)
        output = self.network.apply({"params": self.params}, images, sigma)
        return _times(self.scale(sigma), jnp.asarray(output))


class ScaledScore(Pytree):
    """The score of a network that is not told σ, (images, σ) → scale(σ)·f(x); see :func:`noise_score`."""

    score_fn: ScoreFn
    scale: Scale = static()

    def __call__(self, images: Array, sigma: Array) -> Array:
        return _times(self.scale(jnp.asarray(sigma)), self.score_fn(images))


def _times(factors: Array, output: Array) -> Array:
    """Factors, a scalar or one per image, times an output."""
    return per_image(factors, output) * output if factors.ndim else factors * output


def smallest_sigma(model: Model) -> float:
    """The smallest noise level the model was trained on."""
    sigma = model.metadata.get("training", {}).get("sigma_min")
    if sigma is None:
        raise InputError(
            "model: its file lacks metadata.training.sigma_min, expected a noise level"
        )
    return float(sigma)


def logits_fn(model: Model) -> LogitsFn:
    """Images → logits of a classifier model, with its batch statistics frozen."""
    if model.role != "classifier":
        raise InputError(f"model: got a {model.role}, expected a classifier")
    return NetworkLogits(model.network, model.variables)


class NetworkLogits(Pytree):
    """Images → logits of a linen network with all its variables (``{"params": ...}`` and others)."""

    network: nn.Module = static(kw_only=False)
    variables: Mapping[str, Params]

    def __post_init__(self) -> None:
        self.fill(variables=dict(self.variables))

    def __call__(self, images: Array) -> Array:
        return jnp.asarray(self.network.apply(self.variables, images))


#: The mean and the standard deviation that authors most often apply outside a network, by what to write.
_USUAL = {
    "no normalisation": ((0.0,) * 3, (1.0,) * 3),
    "--mean=0.4914,0.4822,0.4465 --std=0.2023,0.1994,0.2010 (CIFAR-10's)": (
        CIFAR10_MEAN,
        CIFAR10_STD,
    ),
    "--mean=0.485,0.456,0.406 --std=0.229,0.224,0.225 (ImageNet's)": (IMAGENET_MEAN, IMAGENET_STD),
    "--mean=0.5 --std=0.5 (images in [-1, 1])": ((0.5,) * 3, (0.5,) * 3),
}


def accuracies_by_normalisation(
    classifier: Model, images: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """ "as imported" and each usual normalisation → a classifier's accuracy on images ``[batch, h, w, c]`` in [0, 1].

    Weights whose normalisation was outside them are right with one of the others. The network's own
    (x − m)/s is turned into another, (x − m')/s', by giving it m + s (x − m')/s', so that it compiles once.
    """
    network, channels = classifier.network, images.shape[-1]
    mean, std = (getattr(network, name, None) for name in ("mean", "std"))
    own = (mean, std) if mean and std else ((0.0,) * channels, (1.0,) * channels)
    run = jit(logits_fn(classifier))
    found = {}
    for name, (other_mean, other_std) in {"as imported": own, **_USUAL}.items():
        if len(other_mean) != channels and len(set(other_mean)) > 1:
            continue  # three channels' numbers say nothing of one
        standard = (images - _of_channels(other_mean, channels)) / _of_channels(other_std, channels)
        given = _of_channels(own[0], channels) + _of_channels(own[1], channels) * standard
        found[name] = float(np.mean(np.argmax(run(given), axis=-1) == labels))
    return found


def _of_channels(values: Sequence[float], channels: int) -> np.ndarray:
    return np.resize(np.asarray(values, np.float32), channels).reshape(1, 1, 1, channels)
