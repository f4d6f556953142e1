"""How cost grows with the size of a question: seconds, memory and compile time, and their slopes on log axes.

python -m benchmarks.growth --out=benchmarks/results/growth_digits.json --figure=docs/growth.png

One attack (PGD with averaged exact gradients) on the defense ``digits``. One number at a time changes: images,
attack steps, restarts, EOT samples. The others stay as in ``BASE``. A slope of 1 means that twice as much takes
twice as long.
"""

import json
import statistics
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

import purify_jax as pj
from benchmarks import ratios, timing
from experiments.common import cli, provenance
from purify_jax.atomic import check_output, write_atomically
from purify_jax.models.versions import versions
from purify_jax.reporting.plots import png

BASE = {"images": 32, "steps": 10, "restarts": 4, "samples": 2}
SIZES = {
    "images": (32, 64, 128, 256),
    "steps": (5, 10, 20, 40, 80),
    "restarts": (1, 2, 4, 8),
    "samples": (1, 2, 4, 8),
}
QUANTITIES = {
    "seconds": "seconds",
    "megabytes": "temporary memory, MB",
    "compiling": "seconds of compilation",
}
#: Images of one call; more are several calls, as in every evaluation.
_BATCH = 32

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in; a table, JSON and a figure out."""
    del argv
    for name in ("out", "figure"):
        if FLAGS[name].value:
            check_output(name, FLAGS[name].value)
    jax.config.update("jax_enable_compilation_cache", False)
    measured = {
        axis: [measure(**(BASE | {axis: size}), repeats=FLAGS.repeats) for size in sizes]
        for axis, sizes in SIZES.items()
    }
    slopes = {
        axis: {q: slope(axis, rows, q) for q in QUANTITIES} for axis, rows in measured.items()
    }
    print(ratios.table([{"axis": axis, **found} for axis, found in slopes.items()]))
    command = f"python -m benchmarks.growth --repeats={FLAGS.repeats}"
    commit = provenance.commit()
    about = {"command": command, "commit": commit, "versions": versions(), "base": BASE}
    if FLAGS.out:
        content = json.dumps({**about, "slopes": slopes, "measured": measured}, indent=1)
        write_atomically(FLAGS.out, content + "\n")
    if FLAGS.figure:
        marked = provenance.mark_png(draw(measured, slopes), command, commit)
        write_atomically(FLAGS.figure, marked)


def measure(images: int, steps: int, restarts: int, samples: int, repeats: int) -> dict[str, Any]:
    """Seconds of an attack on so many images, of its compilation, and XLA's temporary memory."""
    defense = pj.pretrained.load("digits").defense
    defense = defense.replace(purifier=defense.purifier.replace(num_restarts=restarts))
    gradient = pj.attacks.EOT(pj.attacks.ExactGradient(defense), num_samples=samples)
    attack = pj.attacks.PGD(gradient, epsilon=0.15, num_steps=steps)
    x, y = pj.load_split("digits", "train").batch(np.arange(images))
    keys = pj.image_keys(jax.random.key(0), np.arange(images))
    parts = [slice(first, first + _BATCH) for first in range(0, images, _BATCH)]
    program = jax.jit(lambda attack, keys, x, y: attack(keys, x, y))
    started = time.perf_counter()
    compiled = program.lower(attack, keys[parts[0]], x[parts[0]], y[parts[0]]).compile()
    compiling = time.perf_counter() - started

    def run() -> None:
        for part in parts:
            jax.block_until_ready(compiled(attack, keys[part], x[part], y[part]))

    (times,) = timing.alternate({"": run}, repeats).values()
    return {
        "images": images, "steps": steps, "restarts": restarts, "samples": samples,
        "seconds": statistics.median(times), "compiling": compiling,
        "megabytes": compiled.memory_analysis().temp_size_in_bytes / 1e6,
    }  # fmt: skip


def slope(axis: str, rows: list[dict[str, Any]], quantity: str) -> float:
    """The least-squares slope of log(quantity) over log(size)."""
    sizes, values = (np.log([row[name] for row in rows]) for name in (axis, quantity))
    return float(np.polyfit(sizes, values, 1)[0])


def draw(measured: dict[str, list], slopes: dict[str, dict[str, float]]) -> bytes:
    """The figure as PNG: a panel for each quantity, a curve for each number that grows."""
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    for axes, (quantity, label) in zip(figure.subplots(1, 3), QUANTITIES.items(), strict=True):
        for axis, rows in measured.items():
            first = rows[0][axis]
            name = f"{axis} ({slopes[axis][quantity]:.2f})"
            x, y = ([row[q] for row in rows] for q in (axis, quantity))
            axes.loglog([size / first for size in x], y, "o-", markersize=3, label=name)
        axes.set_xlabel("times as many")
        axes.set_ylabel(label)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, high / 30), 1.3 * high)
        axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=6.5, frameon=False, title="slope in brackets", title_fontsize=6.5)
    return png(figure)


if __name__ == "__main__":
    # Here, because tests import this module beside others whose flags have the same names.
    flags.DEFINE_integer("repeats", 3, "Rounds, of which the median counts.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON file to write.")
    flags.DEFINE_string("figure", None, "PNG to write.")
    cli.run(main)
