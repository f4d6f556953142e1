"""A gradient that would take far more memory than there is, computed in automatic pieces.

python -m benchmarks.memory.automatic [--gigabytes=60] [--memory=20GB]

The exact gradient of the digits defense that ships, 4 EOT samples, as many images as take
``--gigabytes`` side by side. It runs three times, each in a process of its own: within ``--memory``, within a
tenth of it, and with the samples one after the other. Prints the memory of the whole, what each chose, its
largest memory and seconds, and how far the gradients differ.
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
from purify_jax.devices import memory

flags.DEFINE_float("gigabytes", 60.0, "Memory of the undivided program.")
flags.DEFINE_string("memory", "20GB", "What may be taken, as in PURIFY_JAX_MEMORY.")
flags.DEFINE_string("out", None, "Used by the program itself.")
flags.DEFINE_integer("images", 0, "Used by the program itself.")
flags.DEFINE_integer("samples_at_once", None, "Used by the program itself.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, a row of JSON for each way to divide the work."""
    del argv
    function = pj.attacks.EOT(
        pj.attacks.ExactGradient(pj.pretrained.load("digits").defense),
        num_samples=4,
        samples_at_once=FLAGS.samples_at_once,
    )
    if FLAGS.out:
        child.report(_gradient(function))
        return
    # Memory is a line in the number of images.
    few, more = (_undivided(function, images) for images in (360, 720))
    images = 720 + max(0, round((FLAGS.gigabytes * 1e9 - more) / ((more - few) / 360)))
    print(json.dumps({"images": images, "undivided_gb": _undivided(function, images) / 1e9}))
    tenth = str(int(memory.amount(FLAGS.memory) / 10))
    ways = [(FLAGS.memory, []), (tenth, []), ("unlimited", ["--samples_at_once=1"])]
    with tempfile.TemporaryDirectory() as folder:
        first = None
        for budget, given in ways:
            given = [*given, f"--images={images}", f"--out={folder}/gradient.npy"]
            found, said = child.run("benchmarks.memory.automatic", given, {memory.VARIABLE: budget})
            if "failed" not in found:
                gradient = np.load(Path(folder) / "gradient.npy")
                first = gradient if first is None else first
                found["difference"] = float(np.abs(gradient - first).max() / np.abs(first).max())
            chosen = [line for line in said if line.startswith("memory: ")]
            print(json.dumps({"within": budget, **found, "said": chosen}), flush=True)


def _arguments(images: int) -> tuple:
    chosen = np.arange(images) % 360
    shown, labels = pj.data.load_split("digits", "test").batch(chosen)
    return pj.image_keys(jax.random.key(0), np.arange(images)), shown, labels


def _undivided(function: pj.types.GradientFn, images: int) -> float:
    """Bytes of the program that computes all images at once."""
    return memory.compiled_bytes(pj.jit(function).lower(*_arguments(images)).compile())


def _gradient(function: pj.types.GradientFn) -> dict:
    run = memory.divided(function, None)
    started = time.perf_counter()
    gradient = jax.block_until_ready(run(*_arguments(FLAGS.images)))[0]
    seconds = time.perf_counter() - started
    np.save(FLAGS.out, np.asarray(gradient))
    return {"seconds": round(seconds, 1), "peak_gb": round(child.peak_bytes() / 1e9, 2)}


if __name__ == "__main__":
    app.run(main)
