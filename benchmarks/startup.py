"""Time to import, to a command's flags, to the first purified image without and with a cache; recompilations."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import jax

import purify_jax as pj
from benchmarks import timing
from benchmarks.settings import Settings
from purify_jax import attacks, energy, networks, noise, training

_ALL_NAMES = "import purify_jax as pj; [getattr(pj, name) for name in pj.__all__]"
_FIRST = (
    "-c",
    """
import jax, purify_jax as pj
model = pj.pretrained.load("digits")
images, _ = pj.data.load_split("digits", "test[:16]").batch(range(16))
keys = pj.image_keys(jax.random.key(0), jax.numpy.arange(16))
jax.block_until_ready(jax.jit(model.defense)(keys, images))
""",
)


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Rows with seconds of whole Python processes, and counts of compilations.

    ``processor_seconds`` is the process's own time on the processor, which varies less on a shared machine.
    The first row is the least that any process with JAX takes.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cached = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        _seconds(_FIRST, cached)
        cases = {
            "start Python, import jax": (("-c", "import jax"), {}),
            "start Python, import purify_jax": (("-c", "import purify_jax"), {}),
            "the same, all public names": (("-c", _ALL_NAMES), {}),
            "evaluate --help": (("-m", "experiments.evaluate", "--help"), {}),
            "the same, first purified images, no cache": (_FIRST, {}),
            "the same, first purified images, programs in the cache": (_FIRST, cached),
        }
        processor: dict[str, list[float]] = {name: [] for name in cases}
        runs = {
            name: (lambda name=name, case=case: processor[name].append(_seconds(*case)))
            for name, case in cases.items()
        }
        for name, times in timing.alternate(runs, settings.repeats).items():
            rows.append(
                {
                    "what": name,
                    "seconds": statistics.median(times),
                    "processor_seconds": statistics.median(processor[name][1:]),
                }
            )
    return [*rows, *_recompilations()]


def _seconds(arguments: tuple[str, ...], variables: dict[str, str]) -> float:
    """Processor seconds of a whole Python process."""
    spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = spent()
    subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **variables},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return spent() - before


def _recompilations() -> list[dict[str, Any]]:
    """Programs compiled after the first dispatch of a training, and after an attack's first batch."""
    dataset = pj.data.load_split("digits", "train[:64]")
    network, settings = networks.MLP((64,)), training.Settings(70, 16, steps_per_dispatch=10)
    loss = training.DSMLoss(
        noise.linear(0.5, 0.1, 8),
        network=network,
        score_factory=energy.score_from_energy_network,
        scale=noise.per_variance,
    )
    optimizer = settings.optimizer()
    run = training.scan_steps(loss, optimizer, jax.random.key(0))
    state = training.init_state(network, optimizer, jax.random.key(0), dataset.image_shape)
    compiled_by_dispatch: list[int] = []
    with timing.count_compilations() as compiled:

        def counted(*arguments: Any) -> Any:
            compiled_by_dispatch.append(len(compiled))
            return run(*arguments)

        training.fit(counted, state, dataset, settings)
        # If this were 0 too, nothing would be counted.
        first = compiled_by_dispatch[1] - compiled_by_dispatch[0]
        after_training = len(compiled) - compiled_by_dispatch[1]
    model = pj.pretrained.load("digits").defense
    attack = attacks.PGD(attacks.ExactGradient(model), epsilon=0.1, step_size=0.05, num_steps=2)
    batches: list[int] = []

    class Counted(pj.evaluation.AdversarialImages):
        def add(self, attack: str, indices: Any, images: Any) -> None:
            batches.append(len(compiled))

    with timing.count_compilations() as compiled:
        pj.evaluation.evaluate(
            jax.random.key(0), model, {"exact": attack}, pj.data.load_split("digits", "test[:80]"),
            draws=1, saved=Counted(), execution=pj.Execution(batch_size=32),
        )  # fmt: skip
    per_attack = len(batches) // 2
    return [
        {"what": "programs compiled in the first dispatch of a training", "count": first},
        {"what": "programs compiled in dispatches 2 to 7 of a training", "count": after_training},
        {
            "what": "programs compiled in batches 2 and 3 of an attack (the last one padded)",
            "count": batches[-1] - batches[per_attack],
        },
    ]
