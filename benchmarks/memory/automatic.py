"""A gradient that would take far more memory than there is, computed in automatic pieces.

python -m benchmarks.memory.automatic [--gigabytes=60] [--memory=20GB]

The exact gradient of the digits models that ship, one purification step, 360 images × as many EOT samples,
all side by side, as take ``--gigabytes``. It runs three times, each in a process of its own: within
``--memory``, within a tenth of it, and with the samples one after the other by hand. Prints what the
whole would have taken, what each chose, its largest memory and seconds, and how far the gradients differ.
"""

import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

import purify_jax as pj
from benchmarks import child
from purify_jax.devices import memory, pieces
from purify_jax.types import GradientFn

flags.DEFINE_float("gigabytes", 60.0, "What the undivided program takes.")
flags.DEFINE_string("memory", "20GB", "What may be taken, as in PURIFY_JAX_MEMORY.")
flags.DEFINE_string("out", None, "Used by the program itself.")
flags.DEFINE_integer("samples", 0, "Used by the program itself.")
flags.DEFINE_integer("samples_at_once", 0, "Used by the program itself.")
FLAGS = flags.FLAGS
IMAGES = 360


def main(argv: list[str]) -> None:
    """Flags in, a row of JSON for each way to divide the work."""
    del argv
    if FLAGS.out:
        child.report(_gradient(FLAGS.samples, FLAGS.samples_at_once, FLAGS.out))
        return
    allowed = memory.amount(FLAGS.memory)
    # Memory is a line in the number of samples.
    few, more = (_undivided(samples) for samples in (8, 16))
    samples = 16 + max(0, round((FLAGS.gigabytes * 1e9 - more) / ((more - few) / 8)))
    whole = {"undivided_gb": round(_undivided(samples) / 1e9, 2), "eot": samples}
    print(json.dumps(whole), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            FLAGS.memory: (FLAGS.memory, 0),
            "a tenth of it": (str(int(allowed / 10)), 0),
            "by hand": ("unlimited", 1),
        }
        first = None
        for name, (budget, at_once) in ways.items():
            out = Path(folder) / "gradient.npy"
            row = {"within": name, **_child(budget, samples, at_once, out)}
            if "failed" not in row:
                gradient = np.load(out)
                first = gradient if first is None else first
                row["difference"] = float(np.abs(gradient - first).max() / np.abs(first).max())
            print(json.dumps(row), flush=True)


def _child(budget: str, samples: int, at_once: int, out: Path) -> dict:
    given = [f"--out={out}", f"--samples={samples}", f"--samples_at_once={at_once}"]
    found, said = child.run("benchmarks.memory.automatic", given, {memory.VARIABLE: budget})
    return {**found, "said": [line for line in said if line.startswith("memory: ")]}


def _function(samples: int, at_once: int | None = None) -> GradientFn:
    ready = pj.pretrained.load("digits")
    purifier = pj.models.model_purifier(ready.ebm, num_steps=1)
    defense = pj.defend(purifier, pj.models.logits_fn(ready.classifier))
    return pj.attacks.eot(pj.attacks.exact(defense), samples, at_once)


def _arguments() -> tuple:
    test = pj.data.load_split("digits", "test").take(IMAGES)
    images, labels = test.batch(np.arange(IMAGES))
    return pj.image_keys(jax.random.key(0), np.arange(IMAGES)), images, labels


def _undivided(samples: int) -> float:
    """Bytes of the program that computes all images and samples at once."""
    compiled = pj.jit(_function(samples)).lower(*_arguments()).compile()
    return memory.compiled_bytes(compiled)


def _gradient(samples: int, at_once: int, out: str) -> dict:
    run = pieces.over_images(_function(samples, at_once or None), None)
    started = time.perf_counter()
    gradient = jax.block_until_ready(run(*_arguments()))[0]
    seconds = time.perf_counter() - started
    np.save(out, np.asarray(gradient))
    return {"seconds": round(seconds, 1), "peak_gb": round(child.peak_bytes() / 1e9, 2)}


if __name__ == "__main__":
    app.run(main)
