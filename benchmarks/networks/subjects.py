"""The networks that are measured: the paper's two, and the two that are trained for CIFAR-10 on a CPU."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.settings import Settings, counted_flops
from purify_jax import networks


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network, its PyTorch peer and how much goes through them at once.

    network: the library's class; the peer in ``module`` has the same name.
    sizes: what both are made with.
    levels: of a score network, (largest σ, smallest σ, how many) of its training; None: a classifier.
    """

    label: str
    network: type[nn.Module]
    module: str
    sizes: Mapping[str, Any]
    batch: int
    train_batch: int
    levels: tuple[float, float, int] | None = None

    def make(self, dtype: str) -> nn.Module:
        """The library's network."""
        return self.network(**self.sizes, dtype=dtype)

    def peer(self) -> Any:
        """The same network in PyTorch."""
        module = importlib.import_module(self.module)
        return getattr(module, self.network.__name__)(**self.sizes)

    def variables(self) -> Any:
        """Untrained parameters and statistics; times do not depend on them."""
        network = self.make("float32")
        return jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))

    def forward_flops(self) -> float:
        """FLOPs of a forward pass of one image."""
        network, image = self.make("float32"), jnp.zeros((1, 32, 32, 3))
        variables = jax.eval_shape(network.init, jax.random.key(1), image)
        return counted_flops(network.apply, variables, image)


def chosen(settings: Settings) -> list[Subject]:
    """The networks that ``settings.networks`` names."""
    large = (settings.network_batch, settings.train_batch)
    small = (settings.small_batch, settings.small_batch)
    features, convnet, unet = settings.features, settings.convnet_features, settings.unet_features
    wide = {"depth": settings.depth, "width": settings.width}
    subjects = {
        "ncsnv2": Subject(
            f"NCSNv2, {features} features", networks.NCSNv2, "benchmarks.peers.torch_ncsnv2",
            {"features": features}, *large, levels=(50.0, 0.01, 232),
        ),
        "wide_resnet": Subject(
            f"WideResNet-{settings.depth}-{settings.width}", networks.WideResNet,
            "benchmarks.peers.torch_wide_resnet", wide, *large,
        ),
        "whitened_convnet": Subject(
            f"WhitenedConvNet {convnet}", networks.WhitenedConvNet, "experiments.defenses.torch_whitened_convnet",
            {"features": convnet}, *small,
        ),
        "shuffled_unet": Subject(
            f"ShuffledUNet {unet}", networks.ShuffledUNet, "benchmarks.peers.torch_shuffled_unet",
            {"features": unet, "blocks": 1}, *small, levels=(0.5, 0.05, 10),
        ),
    }  # fmt: skip
    return [subjects[name] for name in settings.networks]
