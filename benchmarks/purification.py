"""Purification and gradients through it, against PyTorch loops on the same device in the same run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import purify_jax as pj
from benchmarks import ratios, timing
from benchmarks.settings import Settings, torch_or_none
from purify_jax import attacks, energy, purifiers
from purify_jax.keys import image_keys

#: Label → curvature estimate; network calls a step.
CURVATURES: dict[str, tuple[Callable, int]] = {
    "finite difference": (purifiers.FiniteDifference, 2),
    "Jacobian-vector product": (purifiers.JacobianVectorProduct, 3),
    "secant": (purifiers.Secant, 1),
}


def purifier(settings: Settings, curvature: Callable, dtype: str = "float32", **changes: Any):
    """The paper's purifier with an untrained NCSNv2."""
    network, params, _ = settings.jax_network(dtype)
    return purifiers.ADP(
        energy.NetworkScore(network, params["params"]),
        purifiers.Adaptive(0.05, curvature()),
        num_steps=settings.steps,
        **{"num_restarts": settings.restarts, "noise_scale": 0.25, **changes},
    )


def purify(settings: Settings) -> list[dict[str, Any]]:
    """Images per second with T steps and S restarts, per curvature estimate."""
    count = settings.images
    keys = image_keys(jax.random.key(0), jnp.arange(count))
    images = jax.random.uniform(jax.random.key(1), (count, 32, 32, 3))
    runs, flops = {}, {}
    calls = settings.forward_flops() * settings.steps * settings.restarts * count
    for name, (curvature, per_step) in CURVATURES.items():
        for dtype in ("float32", "bfloat16") if settings.bfloat16 else ("float32",):
            function = jax.jit(purifier(settings, curvature, dtype))
            label = f"jax, {name}" + (", bfloat16" if dtype == "bfloat16" else "")
            runs[label] = lambda f=function: jax.block_until_ready(f(keys, images))
            flops[label] = calls * per_step
    peers = _torch(settings)
    times = timing.alternate(runs | peers, settings.repeats, may_fail=ratios.compiled(peers))
    what = f"purification, T={settings.steps}, S={settings.restarts}, {count} images"
    return ratios.rows(what, times, count, "images_per_s", flops)


def gradients(settings: Settings) -> list[dict[str, Any]]:
    """Gradient evaluations per second (one: one image, one EOT sample), BPDA and exact."""
    count, samples, restarts = settings.images, settings.eot, settings.surrogate_restarts
    keys = image_keys(jax.random.key(0), jnp.arange(count))
    images = jax.random.uniform(jax.random.key(1), (count, 32, 32, 3))
    labels = jnp.zeros(count, jnp.int32)
    logits_fn = settings.jax_classifier()
    rows = []
    for kind, factory in (("BPDA+EOT", attacks.bpda), ("exact+EOT", attacks.ExactGradient)):
        runs, flops = {}, {}
        calls = settings.forward_flops() * settings.steps * restarts * count * samples
        for name, (curvature, per_step) in CURVATURES.items():
            model = pj.Defense(purifier(settings, curvature, num_restarts=restarts), logits_fn)
            function = jax.jit(attacks.EOT(factory(model), num_samples=samples))
            runs[f"jax, {name}"] = lambda f=function: jax.block_until_ready(f(keys, images, labels))
            # Without what is computed again, and without the classifier.
            flops[f"jax, {name}"] = calls * per_step * (1 if factory is attacks.bpda else 2)
        peers = _torch(settings, kind)
        times = timing.alternate(runs | peers, settings.repeats, may_fail=ratios.compiled(peers))
        what = f"{kind} gradient, T={settings.steps}, S={restarts}, EOT {samples}, {count} images"
        rows += ratios.rows(what, times, count * samples, "gradients_per_s", flops)
    return rows


def _torch(settings: Settings, kind: str = "purification") -> dict[str, Callable]:
    """Label → purification with finite differences, or a gradient of a kind, for every PyTorch variant."""
    runs = {}
    for variant in settings.torch_variants():
        from benchmarks.peers import torch_published
        from benchmarks.peers.torch_wide_resnet import WideResNet

        torch = torch_or_none()
        module = variant.prepare(settings.torch_network(torch))
        x = variant.arrange(settings.torch_images(torch, settings.images))
        options: dict[str, Any] = {"steps": settings.steps, "noise_scale": 0.25}
        if kind == "purification":
            function, arguments = torch_published.purify_restarts, (module, x, settings.restarts)
        else:
            classifier = variant.prepare(WideResNet(settings.depth, settings.width))
            labels = torch.zeros(settings.images, dtype=torch.long, device=x.device)
            function, arguments = torch_published.gradient, (module, classifier, x, labels)
            options |= {"restarts": settings.surrogate_restarts, "samples": settings.eot}
            options["exact"] = kind == "exact+EOT"

        def run(function=function, arguments=arguments, options=options) -> None:
            function(*arguments, **options)
            settings.finish(torch)

        runs[variant.label] = run
    return runs
