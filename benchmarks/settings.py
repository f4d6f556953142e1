"""What a benchmark run measures, and the networks that its sections share."""

import dataclasses
import functools
import importlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import timing
from purify_jax import networks


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
    images: int = 2  # of purification and attacks
    restarts: int = 10
    steps: int = 10
    eot: int = 2
    attack_restarts: int = 1
    network_batch: int = 8
    train_batch: int = 8
    repeats: int = 3
    bfloat16: bool = False

    def jax_network(self, dtype: str = "float32") -> tuple[networks.NCSNv2, Any, jax.Array]:
        """NCSNv2 that computes in ``dtype``, its parameters (untrained: times do not depend on them), a batch of images."""
        return networks.NCSNv2(features=self.features, dtype=dtype), *self._variables()

    @functools.cache  # noqa: B019
    def _variables(self) -> tuple[Any, jax.Array]:
        images = jax.random.uniform(jax.random.key(0), (self.network_batch, 32, 32, 3))
        network = networks.NCSNv2(features=self.features)
        return jax.jit(network.init)(jax.random.key(1), images[:1]), images

    def jax_classifier(self) -> Any:
        """Images → logits of an untrained WideResNet."""
        network = networks.WideResNet(depth=self.depth, width=self.width)
        variables = jax.jit(network.init)(jax.random.key(2), jnp.zeros((1, 32, 32, 3)))
        return lambda images: network.apply(variables, images)

    @functools.cache  # noqa: B019
    def forward_flops(self) -> float:
        """FLOPs of NCSNv2 forwards for one image, as XLA counts them."""
        network, params, images = self.jax_network()
        compiled = jax.jit(network.apply).lower(params, images[:1]).compile()
        return float(compiled.cost_analysis()["flops"])

    def torch_device(self, torch: Any) -> str:
        """The device JAX is on, as PyTorch calls it."""
        on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        return "cuda" if on_gpu else "cpu"

    def torch_layouts(self, torch: Any) -> dict[str, Any]:
        """Label → memory layout: channels first, as published, and PyTorch's faster one."""
        return {"torch": None, "torch, channels last": torch.channels_last}

    def torch_network(self, torch: Any, layout: Any) -> tuple[Any, Any]:
        """NCSNv2 in PyTorch, frozen, and a batch of images, in a memory layout."""
        from benchmarks.peers.torch_ncsnv2 import NCSNv2

        module = NCSNv2(self.features).eval().requires_grad_(False).to(self.torch_device(torch))
        return module, self.torch_images(torch, layout, self.network_batch)

    def torch_images(self, torch: Any, layout: Any, count: int) -> Any:
        """Random images NCHW in a memory layout."""
        images = torch.rand(count, 3, 32, 32, device=self.torch_device(torch))
        return images if layout is None else images.contiguous(memory_format=layout)

    def finish(self, torch: Any) -> None:
        """Waits for PyTorch's device."""
        if self.torch_device(torch) == "cuda":
            torch.cuda.synchronize()

    def rows(
        self,
        what: str,
        times: dict[str, list[float]],
        work: float,
        unit: str,
        flops: dict[str, float],
    ) -> list[dict[str, Any]]:
        """One row per function: rate, ratios to PyTorch, FLOP/s."""
        rows = []
        for label, seconds in times.items():
            row = {"what": what, "code": label, **timing.summary(seconds, work, unit)}
            for other in self.reference(times):
                row[f"ratio to {other}"] = statistics.median(times[other]) / row["seconds"]
            if label in flops:
                row["flops_per_s"] = flops[label] / row["seconds"]
            rows.append(row)
        return rows

    @staticmethod
    def reference(times: dict[str, Any]) -> list[str]:
        """The PyTorch codes that were measured in the same rounds."""
        return [label for label in times if label.startswith("torch")]
