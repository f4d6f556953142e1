"""Memory of exact gradients through DiffPure: against steps, beside PyTorch's graph, and at ADM's size.

For JAX, the temporary memory of XLA's compiled program; for PyTorch, the bytes of the tensors that
autograd keeps. Neither depends on the weights, so nothing runs and no weights are made.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp

import purify_jax as pj
from benchmarks.memory.gradients import temporary_bytes, torch_graph
from benchmarks.settings import Settings
from purify_jax import attacks, diffusions, networks, purifiers
from purify_jax.networks.diffusion import ADM


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Rows for NCSNv2 as the ε network of a VP diffusion, and for PyTorch's graph of the same."""
    network, variables, _ = settings.jax_network()
    rows: list[dict[str, Any]] = []
    first = 0.0
    for steps in (10, 100):
        megabytes = gradient_bytes(network, variables, (settings.images, 32, 32, 3), steps) / 1e6
        stored = steps * settings.images * 32 * 32 * 3 * 4 / 1e6
        first = first or megabytes - stored
        rows.append(
            {
                "what": f"DiffPure, NCSNv2 of {settings.features} features, {settings.images} images",
                "steps": steps,
                "MB": megabytes,
                "of it stored images, MB": stored,
                "that without stored images": (megabytes - stored) / first,
            }
        )
    run = lambda published, module, x, steps: published.diffpure(module, x, steps)
    graph = torch_graph(settings, f"the same, {settings.images} images", run)
    ratio = lambda row: {"times the first row": row["MB"] / rows[0]["MB"]}
    return [*rows, *({**row, **ratio(row)} for row in graph)]


def published_adm(settings: Settings) -> list[dict[str, Any]]:
    """ADM 256×256 with 150 steps of DiffPure: memory of one image's exact gradient, and what fits."""
    del settings
    network, shape = ADM(), (1, 256, 256, 3)
    inputs = networks.example_inputs(network, shape[1:])
    variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(variables)) / 2**30
    temporary = gradient_bytes(network, variables, shape, 150) / 2**30
    device = device_bytes() / 2**30
    return [
        {
            "what": "DiffPure, ADM 256×256, exact gradient of one image",
            "steps": 150,
            "parameters, GiB": parameters,
            "temporary, GiB": temporary,
            "device, GiB": device,
            "images at once": max(0, int((device - parameters) // temporary)),
        }
    ]


def gradient_bytes(network: Any, variables: Any, shape: tuple[int, ...], steps: int) -> int:
    """Temporary bytes of the compiled exact gradient through DiffPure and a mean over pixels."""

    def gradient(variables: Any, keys: Any, images: Any, labels: Any) -> Any:
        takes = getattr(network, "takes_condition", False)
        apply = lambda x, condition: network.apply(variables, x, *([condition] if takes else []))
        purifier = purifiers.DiffPureSDE(diffusions.VP(apply), t_star=0.1, num_steps=steps)
        defense = pj.Defense(purifier, lambda x: jnp.mean(x, axis=(1, 2)))
        return attacks.ExactGradient(defense)(keys, images, labels)[0]

    keys = jax.eval_shape(lambda: pj.image_keys(jax.random.key(0), jnp.arange(shape[0])))
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    return temporary_bytes(gradient, variables, keys, images, labels)


def device_bytes() -> int:
    """Memory of the device that JAX computes on; the machine's on a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
