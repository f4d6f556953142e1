"""What compiling costs with parameters as arguments and as constants of the program.

python -m benchmarks.compilation
python -m benchmarks.compilation --gigabytes=2.4    a network of that size: one purification step

Each measurement is a process of its own, without a compilation cache: seconds to lower and to compile,
and the process's largest memory.
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import purify_jax as pj
from benchmarks import child

flags.DEFINE_enum(
    "measure", None, ["arguments", "constants", "large"], "Used by the program itself."
)
flags.DEFINE_integer("features", 128, "Width of NCSNv2; 128 is the published one.")
flags.DEFINE_float("gigabytes", 0.0, "Also a network with so many gigabytes of parameters.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, a table out."""
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    if FLAGS.measure == "large":
        child.report(_large(FLAGS.gigabytes))
    elif FLAGS.measure:
        child.report(_exact_gradient(FLAGS.measure))
    else:
        wanted = ["arguments", "constants", *(["large"] if FLAGS.gigabytes else [])]
        sizes = [f"--features={FLAGS.features}", f"--gigabytes={FLAGS.gigabytes}"]
        for name in wanted:
            found, _ = child.run("benchmarks.compilation", [f"--measure={name}", *sizes])
            print(json.dumps({"parameters": name, **found}))


def _exact_gradient(how: str) -> dict:
    """The exact gradient through 2 steps of NCSNv2, one image, a linear classifier behind it."""
    network = pj.networks.NCSNv2(features=FLAGS.features)
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    # Random, since a constant of one repeated value is stored as one value.
    draws = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(draws.normal(0, 0.01, s.shape), s.dtype), shapes)
    score_fn = pj.energy.NetworkScore(network, params)
    purifier = pj.ADP(score_fn, num_steps=2, num_restarts=1)
    defense = pj.Defense(purifier, lambda x: x.reshape(x.shape[0], -1)[:, :10])
    gradient = pj.attacks.ExactGradient(defense)
    compiled = (pj.jit if how == "arguments" else jax.jit)(gradient)
    keys = pj.image_keys(jax.random.key(0), jnp.arange(1))
    return _measured(compiled, keys, images, jnp.zeros(1, jnp.int32))


def _large(gigabytes: float) -> dict:
    """One purification step, run as well, along a network of so many gigabytes."""
    width = int((gigabytes * 1e9 / 4 / 2) ** 0.5)
    network = pj.networks.MLP(features=(width, width, width))
    images = jnp.full((1, 32, 32, 3), 0.5)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    params = jax.tree.map(lambda s: jnp.full(s.shape, 1e-5, s.dtype), shapes)["params"]
    size = sum(x.size * 4 for x in jax.tree.leaves(params)) / 1e9
    score_fn = pj.energy.NetworkScore(network, params)
    purifier = pj.jit(pj.ADP(score_fn, num_steps=1, num_restarts=1))
    keys = pj.image_keys(jax.random.key(0), jnp.arange(1))
    found = _measured(purifier, keys, images)
    started = time.perf_counter()
    purified, _ = purifier(keys, images)
    finite = bool(jnp.isfinite(purified).all())
    return {"gigabytes": round(size, 2), **found, "run_s": round(time.perf_counter() - started, 1),
            "finite": finite}  # fmt: skip


def _measured(function, *arguments) -> dict:
    before = child.peak_bytes() / 2**20
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    lowering = time.perf_counter() - started
    lowered.compile()
    total = time.perf_counter() - started
    return {
        "lower_s": round(lowering, 1),
        "compile_s": round(total - lowering, 1),
        "peak_mb_before": round(before),
        "peak_mb": round(child.peak_bytes() / 2**20),
    }


if __name__ == "__main__":
    app.run(main)
