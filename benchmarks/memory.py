"""Compiled temporary memory of exact gradients, against steps, EOT samples and chunk.

python -m benchmarks.memory

Memory as XLA's compiled program states it, on digits with the quickstart's networks (untrained:
memory does not depend on the weights). Each purification step is a checkpoint, so only the carried
images of a step stay: one for the published rule, three for the secant.
"""

import jax
import jax.numpy as jnp

import purify_jax as pj
from purify_jax import purification


def main() -> None:
    """Prints the table."""
    images, labels = jnp.full((32, 8, 8, 1), 0.5), jnp.zeros(32, jnp.int32)
    keys = pj.types.image_keys(jax.random.key(0), jnp.arange(32))
    denoiser, classifier = pj.networks.MLP((256, 256)), pj.networks.ConvNet((8, 16))
    params = denoiser.init(keys[0], images)["params"]
    variables = classifier.init(keys[0], images)
    score_fn = pj.energy.score_from_energy_network(denoiser, params)
    rows = []
    for name, curvature in (
        ("finite difference", purification.finite_difference()),
        ("secant", purification.secant()),
    ):
        first = None
        for steps, samples, chunk in (
            (10, 1, 1),
            (100, 1, 1),
            (10, 4, 4),
            (10, 64, 4),
            (10, 64, 16),
        ):
            rule = purification.adaptive(0.3, curvature, max_step=1.0)
            purifier = purification.purifier(score_fn, rule, num_steps=steps, num_restarts=4)
            model = pj.defense.defend(purifier, lambda x: classifier.apply(variables, x))
            gradient = pj.attacks.eot(pj.attacks.exact(model), samples, chunk)
            compiled = jax.jit(gradient).lower(keys, images, labels).compile()
            memory = compiled.memory_analysis().temp_size_in_bytes
            first = first or memory
            stored = steps * 4 * chunk * images.nbytes * (3 if name == "secant" else 1)
            rows.append(
                [
                    name,
                    steps,
                    samples,
                    chunk,
                    f"{memory / 1e6:.2f}",
                    f"{stored / 1e6:.2f}",
                    f"{memory / first:.2f}",
                ]
            )
    columns = ["curvature", "steps", "EOT", "at once", "MB", "of it images MB", "× first row"]
    print(pj.report.text_table(columns, rows))


if __name__ == "__main__":
    main()
