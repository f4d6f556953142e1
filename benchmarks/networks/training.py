"""Training steps: denoising score matching with Adam, or cross-entropy with SGD and momentum.

Both sides flip at random and keep a moving average. Ours takes uint8 images that stay on the
device, four steps a dispatch; PyTorch's batches lie ready, as a DataLoader hands them over.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import ratios, timing
from benchmarks.networks.subjects import Subject
from benchmarks.settings import Settings, torch_or_none
from purify_jax import energy, noise, training
from purify_jax.training.step import start_state

#: Steps of a dispatch, and of PyTorch's loop beside it.
STEPS = 4
#: Of Adam and of SGD.
RATES = (1e-4, 1e-2)
MOMENTUM = 0.9


def measure(settings: Settings, subject: Subject) -> list[dict[str, Any]]:
    """Rows for one training step, ours and every PyTorch variant's."""
    batch = subject.train_batch
    generator = np.random.default_rng(0)
    data = (generator.random((256, 32, 32, 3)) * 255).astype(np.uint8)
    labels = generator.integers(0, 10, 256)
    indices = np.arange(STEPS * batch).reshape(STEPS, batch) % 256
    runs = {
        label: _dispatch(subject, dtype, data, labels, indices)
        for label, dtype in settings.dtypes.items()
    }
    for variant in settings.torch_variants():
        runs[variant.label] = _loop(settings, subject, variant, data, labels, indices)
    times = timing.alternate(runs, settings.repeats, ratios.compiled(runs))
    each = {label: [total / STEPS for total in totals] for label, totals in times.items()}
    kind = "cross-entropy" if subject.levels is None else "DSM"
    what = f"{subject.label}, batch {batch}: training step ({kind})"
    work = 3 * subject.forward_flops() * batch
    return ratios.rows(what, each, batch, "images_per_s", dict.fromkeys(each, work))


def _dispatch(
    subject: Subject, dtype: str, data: np.ndarray, labels: np.ndarray, indices: np.ndarray
) -> Callable[[], None]:
    """Four steps inside one ``lax.scan``, as the library trains."""
    network = subject.make(dtype)
    if subject.levels is None:
        loss = training.ClassificationLoss(network=network)
        optimizer = optax.sgd(RATES[1], momentum=MOMENTUM)
    else:
        levels = noise.geometric(*subject.levels)
        loss = training.DSMLoss(
            levels,
            network=network,
            score_factory=energy.NetworkScore,
            scale=noise.per_sigma,
        )
        settings = training.Settings(1000, learning_rate=RATES[0], schedule="constant")
        optimizer = settings.optimizer()
    run = training.scan_steps(loss, optimizer, jax.random.key(0), augment=training.flip_at_random)
    holder = [start_state(subject.variables(), optimizer)]
    pixels, classes = jnp.asarray(data), jnp.asarray(labels, jnp.int32)

    def dispatch() -> None:
        holder[0], metrics = run(holder[0], pixels, classes, indices)
        jax.block_until_ready((holder[0], metrics))

    return dispatch


def _loop(
    settings: Settings,
    subject: Subject,
    variant: Any,
    data: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
) -> Callable[[], None]:
    """Four steps in a Python loop; the module's forward and backward are compiled where the variant is."""
    from benchmarks.peers import torch_published

    torch = torch_or_none()
    inner = subject.peer()
    average = subject.peer().to(variant.device, memory_format=variant.memory_format)
    module = variant.prepare(inner, trainable=True)
    floats = torch.from_numpy(data.transpose(0, 3, 1, 2) / np.float32(255))
    batches = [variant.arrange(floats[row]) for row in indices]
    if subject.levels is None:
        optimizer = torch.optim.SGD(inner.parameters(), RATES[1], momentum=MOMENTUM, fused=True)
        classes = torch.from_numpy(labels[indices]).to(variant.device)
        step = lambda i: torch_published.classifier_step(
            module, average, optimizer, batches[i], classes[i]
        )
    else:
        optimizer = torch.optim.Adam(inner.parameters(), RATES[0], fused=True)
        sigmas = torch.from_numpy(np.array(noise.geometric(*subject.levels))).to(variant.device)
        step = lambda i: torch_published.dsm_step(module, average, optimizer, batches[i], sigmas)

    def train() -> None:
        for i in range(STEPS):
            step(i)
        settings.finish(torch)

    return train
