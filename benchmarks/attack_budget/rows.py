"""The attacks that are put side by side, by name: each of about the same number of backward passes."""

from collections.abc import Callable, Mapping
from typing import Any

from purify_jax import attacks, losses
from purify_jax.attacks import suites
from purify_jax.defense import Defense, undefended
from purify_jax.types import Attack, GradientFn

#: A defense → attack by name. Several attacks of one row run one after the other, on the images that no
#: earlier one turned, and the strongest candidate of each image counts.
Build = Callable[[Defense], Mapping[str, Attack]]


def table(epsilon: float, norm: str, budget: int) -> dict[str, Build]:
    """Name → row: single attacks of about ``budget`` backward passes, then the two suites.

    The suites take what they take at 400, and in proportion at other budgets.
    """
    ball: dict[str, Any] = {"norm": norm, "epsilon": epsilon}
    reach = epsilon / 4  # of the common step that weights look ahead: the first step's length

    def mean(gradient: GradientFn, eot: int) -> GradientFn:
        return attacks.EOT(gradient, num_samples=eot, samples_at_once=4)

    def alone(build: Callable[[Defense], Attack]) -> Build:
        return lambda defense: {"attack": build(defense)}

    def momentum(
        loss=losses.cross_entropy, eot=4, of_mean=False, warm=False, share=1.0, **more
    ) -> Build:
        def build(defense: Defense) -> Attack:
            if of_mean:
                predict = attacks.MeanPrediction(defense, num_samples=eot, samples_at_once=4)
                gradient = attacks.ExactGradient(predict, loss)
            else:
                gradient = mean(attacks.ExactGradient(defense, loss), eot)
            steps = max(1, int(share * budget) // eot)
            start = None
            if warm:
                bare = attacks.ExactGradient(undefended(defense.logits_fn), loss)
                start = attacks.MomentumPGD(bare, num_steps=50, **ball)
            return attacks.MomentumPGD(gradient, num_steps=steps, start=start, **ball, **more)

        return alone(build)

    def plain(eot: int, steps: int) -> Build:
        gradient = lambda d: mean(attacks.ExactGradient(d), eot)
        return alone(lambda d: attacks.PGD(gradient(d), num_steps=max(1, steps), **ball))

    def auto(eot: int, loss) -> Build:
        gradient = lambda d: mean(attacks.ExactGradient(d, loss), eot)
        return alone(lambda d: attacks.APGD(gradient(d), num_steps=max(1, budget // eot), **ball))

    def follow(gradient: Callable[[Defense], GradientFn], backward: int) -> Build:
        """Momentum PGD along a gradient that takes so many backward passes at a point."""
        steps = max(1, budget // backward)
        return alone(lambda d: attacks.MomentumPGD(gradient(d), num_steps=steps, **ball))

    def graft(samples: int, loss=losses.cross_entropy, step=None) -> Build:
        more: dict[str, Any] = {"step": step, "norm": norm, "samples_at_once": 4}
        return follow(lambda d: attacks.Grafted(d, num_samples=samples, loss_fn=loss, **more), 1)

    def again(times: int) -> Build:
        """Restarts: the same attack from several random points, of which the best is kept."""
        single = momentum(eot=1, share=1 / times)
        return lambda d: {f"attack {i}": single(d)["attack"] for i in range(times)}

    def stages(share: float) -> Build:
        """A short attack first; what survives it goes through the suite."""
        short, whole = momentum(eot=1, share=share), suite("honest", 400)
        return lambda d: {"short": short(d)["attack"], **whole(d)}

    def suite(name: str, steps: int) -> Build:
        options = suites.Options(**ball, steps=max(1, round(steps * budget / 400)))
        return lambda d: suites.build(name, d, options)

    return {
        "exhaustive": suite("exhaustive", 200),
        "honest": suite("honest", 400),
        "PGD, EOT 20": plain(20, budget // 20),
        "PGD, EOT 4": plain(4, budget // 4),
        "APGD-CE, EOT 4": auto(4, losses.cross_entropy),
        "momentum, cross-entropy, EOT 4": momentum(),
        "momentum, cross-entropy, EOT 1": momentum(eot=1),
        "momentum, cross-entropy, EOT 2": momentum(eot=2),
        "momentum, cross-entropy, EOT 16": momentum(eot=16),
        "no momentum, falling step, EOT 4": momentum(momentum=0.0),
        "momentum 0.97, cross-entropy, EOT 4": momentum(momentum=0.97),
        "momentum, margin, EOT 4": momentum(losses.margin),
        "momentum, smooth error, EOT 4": momentum(losses.smooth_error),
        "momentum, smooth error, EOT 1": momentum(losses.smooth_error, eot=1),
        "momentum, margin of the mean, EOT 4": momentum(losses.margin, of_mean=True),
        "momentum, smooth error, EOT 4, from the transfer attack": momentum(losses.smooth_error, warm=True),
        "momentum, smooth error, EOT 4, three times the passes": momentum(losses.smooth_error, share=3.0),
        "momentum, cross-entropy, EOT 4, three times the passes": momentum(share=3.0),
        "grafting, 4 draws": graft(4),
        "DiffHammer, 4 draws": graft(4, losses.margin, reach),
        "four restarts of a quarter": again(4),
        "stages: a quarter of the first attack, then honest": stages(0.25),
    }  # fmt: skip
