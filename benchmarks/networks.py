"""NCSNv2 by itself and in training, against the same network in PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.settings import Settings, torch_or_none
from purify_jax import energy, noise, training


def forward_and_gradient(settings: Settings) -> list[dict[str, Any]]:
    """A row each for forward pass and input gradient, JAX and PyTorch in both memory layouts."""
    network, params, images = settings.jax_network()
    forward = jax.jit(network.apply)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(network.apply(p, x) ** 2), argnums=1))
    runs = {
        "forward": {"jax": lambda: jax.block_until_ready(forward(params, images))},
        "input gradient": {"jax": lambda: jax.block_until_ready(gradient(params, images))},
    }
    if torch := torch_or_none():
        for label, layout in settings.torch_layouts(torch).items():
            module, x = settings.torch_network(torch, layout)

            def apply(module=module, x=x) -> None:
                with torch.no_grad():
                    module(x)
                settings.finish(torch)

            def differentiate(module=module, x=x) -> None:
                leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(True)
                torch.autograd.grad((module(leaf) ** 2).sum(), leaf)
                settings.finish(torch)

            runs["forward"][label], runs["input gradient"][label] = apply, differentiate
    flops = settings.forward_flops()
    rows = []
    for name, functions in runs.items():
        times = timing.alternate(functions, settings.repeats)
        work = flops * len(images) * (1 if name == "forward" else 2)
        rows += settings.rows(name, times, len(images), "images_per_s", {"jax": work})
    return rows


def dsm_training(settings: Settings) -> list[dict[str, Any]]:
    """Steps of denoising score matching: device-resident uint8 data, four steps a dispatch."""
    steps, batch = 4, settings.train_batch
    optimizer = training.adam(1e-4, 1000, cosine=False)
    levels = noise.geometric(50.0, 0.01, 232)
    data = (np.random.default_rng(0).random((256, 32, 32, 3)) * 255).astype(np.uint8)
    pixels, labels = jnp.asarray(data), jnp.zeros(256, jnp.int32)
    indices = np.arange(steps * batch).reshape(steps, batch) % 256
    runs = {}
    for label, dtype in (("jax", "float32"), ("jax, bfloat16", "bfloat16")):
        if dtype == "bfloat16" and not settings.bfloat16:
            continue
        net, _, images = settings.jax_network(dtype)
        loss = training.dsm_loss(net, energy.score_from_network, levels, noise.per_sigma)
        run = training.scan_steps(loss, optimizer, jax.random.key(0), flip=True)
        holder = [training.init_state(net, optimizer, jax.random.key(0), images.shape[1:])]

        def dispatch(run=run, holder=holder) -> None:
            holder[0], metrics = run(holder[0], pixels, labels, indices)
            jax.block_until_ready(metrics)

        runs[label] = dispatch
    if torch := torch_or_none():
        from benchmarks.peers import torch_published

        module, _ = settings.torch_network(torch, None)
        average, _ = settings.torch_network(torch, None)
        module.train().requires_grad_(True)
        adam = torch.optim.Adam(module.parameters(), lr=1e-4)
        sigmas = torch.from_numpy(np.array(levels)).to(settings.torch_device(torch))
        # As a DataLoader hands them over: floats in [0, 1], channels first.
        floats = torch.from_numpy(data.transpose(0, 3, 1, 2) / np.float32(255))
        floats = floats.contiguous().to(settings.torch_device(torch))

        def train() -> None:
            for row in indices:
                torch_published.dsm_step(module, average, adam, floats[row], sigmas)
            settings.finish(torch)

        runs["torch"] = train
    times = timing.alternate(runs, settings.repeats)
    work = 3 * settings.forward_flops() * steps * batch
    return settings.rows(
        "DSM training", times, steps * batch, "images_per_s",
        {"jax": work, "jax, bfloat16": work},
    )  # fmt: skip
