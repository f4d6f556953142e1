"""Memory of exact gradients against steps, EOT samples and chunk: compiled JAX, PyTorch's graph.

For JAX, the temporary memory of XLA's compiled program; for PyTorch, the bytes of the tensors that
autograd keeps. Neither depends on the weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import purify_jax as pj
from benchmarks.purification import CURVATURES, purifier
from benchmarks.settings import Settings, torch_or_none
from purify_jax import attacks, networks, purifiers
from purify_jax.keys import image_keys


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Rows for the quickstart's digits networks, for NCSNv2, and for PyTorch's graph."""
    rows = []
    digits = [(10, 1, 1), (100, 1, 1), (10, 4, 4), (10, 64, 4), (10, 64, 16)]
    for name in ("finite difference", "secant"):
        rows += _compiled("digits MLP", _digits, (32, 8, 8, 1), name, 4, digits)
        make = lambda curvature, **changes: _ncsnv2(settings, curvature, **changes)
        shape = (settings.images, 32, 32, 3)
        label = f"NCSNv2, {settings.features} features"
        rows += _compiled(label, make, shape, name, 1, [(10, 1, 1), (100, 1, 1), (10, 4, 1)])
    what = f"NCSNv2, {settings.images} images, finite difference"
    purify = lambda published, module, x, steps: published.purify(
        module, x, steps=steps, noise_scale=0.25
    )
    graph = torch_graph(settings, what, purify)
    more = lambda row: {"EOT": 1, "at once": 1, "times the first row": row["MB"] / graph[0]["MB"]}
    return [*rows, *({**row, **more(row)} for row in graph)]


def temporary_bytes(function: Callable, *arguments: Any) -> int:
    """Temporary bytes of a function's compiled program."""
    compiled = jax.jit(function).lower(*arguments).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def torch_graph(settings: Settings, what: str, run: Callable) -> list[dict[str, Any]]:
    """Rows of the bytes that PyTorch keeps for ``run(torch_published, module, images, steps)``; none without it."""
    if (torch := torch_or_none()) is None:
        return []
    from benchmarks.peers import torch_published

    module = settings.torch_network(torch)
    x = settings.torch_images(torch, settings.images)
    rows: list[dict[str, Any]] = []
    for steps in (1, 2, 4, 10):
        leaf = x.clone().requires_grad_(True)
        kept = torch_published.stored_bytes(lambda: run(torch_published, module, leaf, steps))
        rows.append({"what": f"PyTorch graph, {what}", "steps": steps, "MB": kept / 1e6})
    return rows


def _digits(curvature: Callable, **changes: Any) -> pj.defense.Defense:
    images = jnp.full((32, 8, 8, 1), 0.5)
    denoiser, classifier = networks.MLP((256, 256)), networks.ConvNet((8, 16))
    key = jax.random.key(0)
    params, variables = denoiser.init(key, images)["params"], classifier.init(key, images)
    made = purifiers.ADP(
        pj.energy.score_from_energy_network(denoiser, params),
        purifiers.Adaptive(0.3, curvature(), max_step=1.0),
        **changes,
    )
    return pj.Defense(made, lambda x: classifier.apply(variables, x))


def _ncsnv2(settings: Settings, curvature: Callable, **changes: Any) -> pj.defense.Defense:
    made = purifier(settings, curvature).replace(**changes)
    return pj.Defense(made, lambda x: jnp.mean(x, axis=(1, 2)))


def _compiled(
    label: str,
    make: Callable,
    shape: tuple[int, ...],
    name: str,
    restarts: int,
    cases: list[tuple[int, int, int]],
) -> list[dict[str, Any]]:
    images, labels = jnp.full(shape, 0.5), jnp.zeros(shape[0], jnp.int32)
    keys = image_keys(jax.random.key(0), jnp.arange(shape[0]))
    rows: list[dict[str, Any]] = []
    first = 0.0
    for steps, samples, chunk in cases:
        model = make(CURVATURES[name][0], num_steps=steps, num_restarts=restarts)
        gradient = attacks.EOT(
            attacks.ExactGradient(model), num_samples=samples, samples_at_once=chunk
        )
        megabytes = temporary_bytes(gradient, keys, images, labels) / 1e6
        # The carried images of a step are kept: one for finite differences, three for the secant.
        kept = 3 if name == "secant" else 1
        stored = steps * restarts * chunk * images.nbytes * kept / 1e6
        first = first or megabytes - stored
        rows.append(
            {
                "what": f"{label}, {shape[0]} images, {name}",
                "steps": steps,
                "EOT": samples,
                "at once": chunk,
                "MB": megabytes,
                "of it stored images, MB": stored,
                "times the first row": megabytes / (rows[0]["MB"] if rows else megabytes),
                "that without stored images": (megabytes - stored) / first,
            }
        )
    return rows
