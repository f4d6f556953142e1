"""What a benchmark run measures, and what its sections share: sizes, NCSNv2, PyTorch's device and variants."""

import dataclasses
import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from purify_jax.networks import NCSNv2, WideResNet

#: Kinds of PyTorch variants, each in both memory layouts.
PEERS = ("eager", "compiled", "eager_bfloat16", "compiled_bfloat16")
#: The networks of the sections "networks" and "kernels", see ``benchmarks.networks.subjects``.
NETWORKS = ("ncsnv2", "wide_resnet", "whitened_convnet", "shuffled_unet")


def torch_or_none() -> Any:
    """PyTorch if it is installed (``make torch``); a run without it has no ratios."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the work. The defaults fit two CPU cores; a GPU takes larger batches."""

    features: int = 128
    depth: int = 28
    width: int = 10
    convnet_features: tuple[int, ...] = (64, 256, 256)
    unet_features: tuple[int, ...] = (64, 128, 128)
    images: int = 2  # of purification and attacks
    restarts: int = 10
    steps: int = 10
    eot: int = 2
    surrogate_restarts: int = 1
    network_batch: int = 8  # of the large networks; the small ones take small_batch
    train_batch: int = 8
    small_batch: int = 128
    repeats: int = 3
    bfloat16: bool = False
    networks: tuple[str, ...] = NETWORKS
    peers: tuple[str, ...] = PEERS
    models: tuple[str, ...] = ("digits",)  # of accuracy
    accuracy_images: int = 360
    data_dir: str | None = None

    @property
    def dtypes(self) -> dict[str, str]:
        """Label → dtype of the library's own rows that need no further label."""
        both = {"jax": "float32", "jax, bfloat16": "bfloat16"}
        return both if self.bfloat16 else {"jax": "float32"}

    def jax_network(self, dtype: str = "float32") -> tuple[NCSNv2, Any, jax.Array]:
        """NCSNv2 that computes in ``dtype``, its parameters (untrained: times do not depend on them), a batch of images."""
        return NCSNv2(features=self.features, dtype=dtype), *self._variables()

    @functools.cache  # noqa: B019
    def _variables(self) -> tuple[Any, jax.Array]:
        images = jax.random.uniform(jax.random.key(0), (self.network_batch, 32, 32, 3))
        network = NCSNv2(features=self.features)
        return jax.jit(network.init)(jax.random.key(1), images[:1]), images

    def jax_classifier(self) -> Any:
        """Images → logits of an untrained WideResNet."""
        network = WideResNet(depth=self.depth, width=self.width)
        variables = jax.jit(network.init)(jax.random.key(2), jnp.zeros((1, 32, 32, 3)))
        return lambda images: network.apply(variables, images)

    @functools.cache  # noqa: B019
    def forward_flops(self) -> float:
        """FLOPs of NCSNv2 forwards for one image."""
        network, params, images = self.jax_network()
        return counted_flops(network.apply, params, images[:1])

    def torch_device(self, torch: Any) -> str:
        """The device JAX is on, as PyTorch calls it."""
        on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        return "cuda" if on_gpu else "cpu"

    def torch_variants(self) -> list[Any]:
        """The ways of running a PyTorch module that this run measures; none without PyTorch.

        What was compiled for an earlier piece of work is forgotten, and its memory freed.
        """
        if (torch := torch_or_none()) is None:
            return []
        from benchmarks.peers import variants

        torch._dynamo.reset()
        return variants.choose(self.peers, self.torch_device(torch))[0]

    def torch_network(self, torch: Any) -> Any:
        """NCSNv2 in PyTorch, frozen."""
        from benchmarks.peers import torch_ncsnv2

        module = torch_ncsnv2.NCSNv2(self.features)
        return module.eval().requires_grad_(False).to(self.torch_device(torch))

    def torch_images(self, torch: Any, count: int) -> Any:
        """Random images NCHW."""
        return torch.rand(count, 3, 32, 32, device=self.torch_device(torch))

    def finish(self, torch: Any) -> None:
        """Waits for PyTorch's device."""
        if self.torch_device(torch) == "cuda":
            torch.cuda.synchronize()


def counted_flops(function: Any, *arguments: Any) -> float:
    """FLOPs of a function as XLA counts them in its program: what multiplies padding is left out."""
    return float(jax.jit(function).lower(*arguments).cost_analysis()["flops"])
