"""The networks that are measured: the paper's two, and the two that are trained for CIFAR-10 on a CPU."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.settings import Settings, counted_flops
from purify_jax import networks


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network, its PyTorch peer and how much goes through them at once.

    make: dtype → the library's network.
    peer: makes the same network in PyTorch.
    levels: of a score network, (largest σ, smallest σ, how many) of its training; None: a classifier.
    """

    label: str
    make: Callable[[str], nn.Module]
    peer: Callable[[], Any]
    batch: int
    train_batch: int
    levels: tuple[float, float, int] | None = None

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
    makers = {
        "ncsnv2": _ncsnv2,
        "wide_resnet": _wide_resnet,
        "whitened_convnet": _whitened_convnet,
        "shuffled_unet": _shuffled_unet,
    }
    return [makers[name](settings) for name in settings.networks]


def _peer(module: str, name: str, *arguments: Any, **settings: Any) -> Callable[[], Any]:
    """Makes a network of ``benchmarks.peers``, which is imported where PyTorch is."""
    return lambda: getattr(importlib.import_module(f"benchmarks.peers.{module}"), name)(
        *arguments, **settings
    )


def _ncsnv2(settings: Settings) -> Subject:
    return Subject(
        f"NCSNv2, {settings.features} features",
        lambda dtype: networks.NCSNv2(features=settings.features, dtype=dtype),
        _peer("torch_ncsnv2", "NCSNv2", settings.features),
        settings.network_batch,
        settings.train_batch,
        levels=(50.0, 0.01, 232),
    )


def _wide_resnet(settings: Settings) -> Subject:
    return Subject(
        f"WideResNet-{settings.depth}-{settings.width}",
        lambda dtype: networks.WideResNet(depth=settings.depth, width=settings.width, dtype=dtype),
        _peer("torch_wide_resnet", "WideResNet", settings.depth, settings.width),
        settings.network_batch,
        settings.train_batch,
    )


def _whitened_convnet(settings: Settings) -> Subject:
    features = settings.convnet_features
    return Subject(
        f"WhitenedConvNet {features}",
        lambda dtype: networks.WhitenedConvNet(features=features, dtype=dtype),
        _peer("torch_whitened_convnet", "WhitenedConvNet", features),
        settings.small_batch,
        settings.small_batch,
    )


def _shuffled_unet(settings: Settings) -> Subject:
    features = settings.unet_features
    return Subject(
        f"ShuffledUNet {features}",
        lambda dtype: networks.ShuffledUNet(features=features, blocks=1, dtype=dtype),
        _peer("torch_shuffled_unet", "ShuffledUNet", features, blocks=1),
        settings.small_batch,
        settings.small_batch,
        levels=(0.5, 0.05, 10),
    )
