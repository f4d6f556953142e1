"""How strong an attack is for what it costs: average accuracy against backward passes per image.

python -m benchmarks.attack_budget --model=digits --dataset=digits --split='train[80%:]' --images=128 --epsilon=0.15

Attacks of equal cost side by side, the suite as it is, and what stages make of the best. Every row is
judged by the attacker's own draws and scored by fresh ones; differences to the suite are paired. The
settings of the ``honest`` suite were chosen by this, on images that no table reports.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags
from scipy import stats

from experiments.common import cli, loading
from purify_jax import attacks, losses
from purify_jax.atomic import write_atomically
from purify_jax.attacks import costs, suites
from purify_jax.defense import Defense, undefended
from purify_jax.evaluation import evaluate, protocol
from purify_jax.evaluation.records import Record
from purify_jax.types import Attack

loading.define(images=128, batch_size=64)
loading.define_ball()
flags.DEFINE_integer("draws", 20, "Scoring draws.")
flags.DEFINE_integer("backward", 400, "Backward passes of one attack.")
flags.DEFINE_list("only", [], "Rows, by the beginnings of their names; all by default.")
FLAGS = flags.FLAGS

Build = Callable[[Defense], Attack]


def table(epsilon: float, norm: str, budget: int) -> dict[str, Build]:
    """Name → attack of a defense; all of about ``budget`` backward passes."""
    ball = {"norm": norm, "epsilon": epsilon}

    def momentum(
        loss=losses.cross_entropy, eot=4, mean=False, warm=False, share=1.0, **more
    ) -> Build:
        def build(defense: Defense) -> Attack:
            if mean:
                gradient = attacks.exact(attacks.average_draws(defense, eot, 4), loss)
            else:
                gradient = attacks.eot(attacks.exact(defense, loss), eot, 4)
            steps = max(1, int(share * budget) // eot)
            start = None
            if warm:
                bare = attacks.exact(undefended(defense.logits_fn), loss)
                start = attacks.momentum_pgd(bare, num_steps=50, **ball)
            return attacks.momentum_pgd(gradient, num_steps=steps, start=start, **ball, **more)

        return build

    def plain(eot: int, steps: int) -> Build:
        gradient = lambda d: attacks.eot(attacks.exact(d), eot, 4)
        return lambda d: attacks.pgd(gradient(d), num_steps=steps, **ball)

    def auto(eot: int, loss) -> Build:
        gradient = lambda d: attacks.eot(attacks.exact(d, loss), eot, 4)
        return lambda d: attacks.apgd(gradient(d), num_steps=budget // eot, **ball)

    return {
        "PGD, EOT 20": plain(20, budget // 20),
        "PGD, EOT 4": plain(4, budget // 4),
        "APGD-CE, EOT 4": auto(4, losses.cross_entropy),
        "momentum, cross-entropy, EOT 4": momentum(),
        "momentum, cross-entropy, EOT 1": momentum(eot=1),
        "momentum, cross-entropy, EOT 16": momentum(eot=16),
        "no momentum, falling step, EOT 4": momentum(momentum=0.0),
        "momentum 0.97, cross-entropy, EOT 4": momentum(momentum=0.97),
        "momentum, margin, EOT 4": momentum(losses.margin),
        "momentum, smooth error, EOT 4": momentum(losses.smooth_error),
        "momentum, smooth error, EOT 1": momentum(losses.smooth_error, eot=1),
        "momentum, margin of the mean, EOT 4": momentum(losses.margin, mean=True),
        "momentum, smooth error, EOT 4, from the transfer attack": momentum(losses.smooth_error, warm=True),
        "momentum, smooth error, EOT 4, three times the passes": momentum(losses.smooth_error, share=3.0),
        "momentum, cross-entropy, EOT 4, three times the passes": momentum(share=3.0),
    }  # fmt: skip


def main(argv: list[str]) -> None:
    """Flags in; a table on the terminal and ``attack_budget.json`` in the workdir out."""
    del argv
    loaded = loading.load()
    defense, dataset = loaded.models["defended"], loaded.dataset.take(FLAGS.images)
    image, _ = dataset.batch(np.arange(1))
    ball = (FLAGS.norm, FLAGS.epsilon)
    run = lambda name, attack: evaluate(
        jax.random.key(FLAGS.seed),
        defense,
        {name: attack},
        dataset,
        draws=FLAGS.draws,
        batch_size=FLAGS.batch_size,
        ball=ball,
        passes=None,
    )
    rows: dict[str, dict] = {}
    found: dict[str, list[Record]] = {}

    def say(name: str, records: list[Record], price: costs.Passes) -> None:
        kept = [r["correct_draws"] / r["draws"] for r in protocol.strongest(records)]
        figures = protocol.figures(records)
        first = next(iter(found)) if found else name
        found[name] = records
        before = [r["correct_draws"] / r["draws"] for r in protocol.strongest(found[first])]
        difference = np.array(kept) - np.array(before)
        half = stats.t.ppf(0.975, len(kept) - 1) * difference.std(ddof=1) / np.sqrt(len(kept))
        rows[name] = {
            "average": figures.average,
            "worst": figures.worst,
            "backward": price.purifier_backward,
            "forward": price.purifier_forward,
            "difference": [float(difference.mean()), float(half)],
        }
        print(
            f"{name:60s} {price.purifier_backward:6.0f} backward, average {figures.average}, worst of "
            f"{figures.draws} {figures.worst.value:.3f}, minus the first {difference.mean():+.3f} ± {half:.3f}",
            flush=True,
        )
        if FLAGS.workdir:
            path = Path(FLAGS.workdir) / "attack_budget.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(rows, indent=2) + "\n")

    chosen = lambda name: not FLAGS.only or any(name.startswith(o) for o in FLAGS.only)
    for suite in [s for s in ("exhaustive", "honest") if chosen(s) and s in suites.SUITES]:
        options = suites.Options(norm=FLAGS.norm, epsilon=FLAGS.epsilon)
        entries = suites.build(suite, defense, options)
        records = evaluate(
            jax.random.key(FLAGS.seed), defense, {e.name: e.attack for e in entries}, dataset,
            draws=FLAGS.draws, batch_size=FLAGS.batch_size, ball=ball,
            passes=suites.passes(suite, defense, options, image),
            drop_fallen=True,
        )  # fmt: skip
        say(suite, records, protocol.cost(records))
    for name, build in table(FLAGS.epsilon, FLAGS.norm, FLAGS.backward).items():
        if chosen(name):
            say(name, run(name, build(defense)), costs.count(build, defense, image))


if __name__ == "__main__":
    cli.run(main)
