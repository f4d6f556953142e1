"""A network's forward pass and its input gradient, outside any loop."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import ratios, timing
from benchmarks.networks.subjects import Subject
from benchmarks.settings import Settings, torch_or_none


def measure(settings: Settings, subject: Subject) -> list[dict[str, Any]]:
    """Rows for forward pass and input gradient, ours and every PyTorch variant's."""
    variables = subject.variables()
    images = jax.random.uniform(jax.random.key(0), (subject.batch, 32, 32, 3))
    runs: dict[str, dict] = {"forward": {}, "input gradient": {}}
    for label, dtype in settings.dtypes.items():
        network = subject.make(dtype)
        forward = jax.jit(network.apply)
        gradient = jax.jit(
            jax.grad(lambda v, x, net=network: jnp.sum(net.apply(v, x) ** 2), argnums=1)
        )
        for name, function in (("forward", forward), ("input gradient", gradient)):
            runs[name][label] = lambda f=function: jax.block_until_ready(f(variables, images))
    for variant in settings.torch_variants():
        torch = torch_or_none()
        module = variant.prepare(subject.peer())
        x = variant.arrange(settings.torch_images(torch, subject.batch))

        def apply(torch=torch, module=module, x=x) -> None:
            with torch.no_grad():
                module(x)
            settings.finish(torch)

        def differentiate(torch=torch, module=module, x=x) -> None:
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(True)
            torch.autograd.grad((module(leaf) ** 2).sum(), leaf)
            settings.finish(torch)

        runs["forward"][variant.label] = apply
        runs["input gradient"][variant.label] = differentiate
    flops = subject.forward_flops() * subject.batch
    rows = []
    for name, functions in runs.items():
        times = timing.alternate(functions, settings.repeats, ratios.compiled(functions))
        work = flops * (1 if name == "forward" else 2)
        what = f"{subject.label}, batch {subject.batch}: {name}"
        rows += ratios.rows(what, times, subject.batch, "images_per_s", dict.fromkeys(times, work))
    return rows
