"""NCSNv2 against the same network in PyTorch, on the same device in the same run.

python -m benchmarks.ncsnv2 [--features 64 128] [--batch 1 8] [--repeats 5] [--out FILE.json]

Forward and input gradient of 32×32×3 images. Rounds alternate between the two; the ratio is that of
the medians (above 1: JAX is faster). Needs PyTorch (make torch).
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.torch_ncsnv2 import NCSNv2 as TorchNCSNv2
from purify_jax import networks, report


def measure(features: int, batch: int, repeats: int) -> list[dict]:
    """A row each for forward and input gradient."""
    network = networks.NCSNv2(features=features)
    x = jax.random.uniform(jax.random.key(0), (batch, 32, 32, 3))
    params = jax.jit(network.init)(jax.random.key(1), x)
    forward = jax.jit(network.apply)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(network.apply(p, x) ** 2), argnums=1))
    compiled = forward.lower(params, x).compile()
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    module = TorchNCSNv2(features).to(device).eval().requires_grad_(False)
    images = torch.from_numpy(np.array(x).transpose(0, 3, 1, 2)).to(device)
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None

    def torch_forward() -> None:
        with torch.no_grad():
            module(images)
        finish()

    def torch_gradient() -> None:
        leaf = images.clone().requires_grad_(True)
        torch.autograd.grad((module(leaf) ** 2).sum(), leaf)
        finish()

    rows = []
    for name, ours, theirs in (
        ("forward", lambda: jax.block_until_ready(forward(params, x)), torch_forward),
        ("input gradient", lambda: jax.block_until_ready(gradient(params, x)), torch_gradient),
    ):
        times: dict[str, list[float]] = {"jax": [], "torch": []}
        for repeat in range(repeats + 1):  # the first round compiles and warms up
            for label, run in (("jax", ours), ("torch", theirs)):
                started = time.perf_counter()
                run()
                if repeat:
                    times[label].append(time.perf_counter() - started)
        medians = {label: statistics.median(values) for label, values in times.items()}
        rows.append(
            {
                "what": name,
                "features": features,
                "batch": batch,
                "jax_images_per_s": batch / medians["jax"],
                "torch_images_per_s": batch / medians["torch"],
                "ratio": medians["torch"] / medians["jax"],
                "forward_gflop_per_image": compiled.cost_analysis()["flops"] / batch / 1e9,
            }
        )
    return rows


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()
    rows = [
        r for f in options.features for b in options.batch for r in measure(f, b, options.repeats)
    ]
    columns = list(rows[0])
    cells = [[f"{v:.3g}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    print(report.text_table(columns, cells))
    versions = {**report.versions(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if options.out:
        with open(options.out, "w") as file:
            json.dump({"rows": rows, "versions": versions}, file, indent=2)


if __name__ == "__main__":
    main()
