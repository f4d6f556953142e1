"""The attack that knows the keys from which a defense draws: what their secrecy is worth."""

from purify_jax.attacks.gradients import ExactGradient
from purify_jax.attacks.projected_gradient import PGD
from purify_jax.attacks.suites import Options
from purify_jax.keys import stream
from purify_jax.pytrees import Pytree, static
from purify_jax.types import Array, Attack, Keys, PredictFn


class FixedKeys(Pytree):
    """A defense that draws from the same keys at every call, whatever keys it is given."""

    defense: PredictFn
    keys: Keys

    def __call__(self, keys: Keys, images: Array) -> Array:
        return self.defense(self.keys, images)


class SharedKeys(Pytree):
    """Exact PGD against a defense that draws from the attack's own keys, see :func:`white_box`."""

    defense: PredictFn
    epsilon: float
    norm: str = static()
    num_steps: int = static()

    def __call__(self, keys: Keys, images: Array, labels: Array) -> Array:
        gradient = ExactGradient(FixedKeys(self.defense, keys))
        attack = PGD(gradient, norm=self.norm, epsilon=self.epsilon, num_steps=self.num_steps)
        # The attack's own draws (its start) are not those of the defense, which has ``keys`` themselves.
        return attack(stream(keys, "attack"), images, labels)


def white_box(defense: PredictFn, options: Options) -> Attack:
    """Exact PGD by an attack that knows the defense's keys, so that the defense is deterministic to it.

    For ``evaluate(..., shared_keys=True)``, which hands the attack the very draw that is scored. Nothing
    has to be averaged, so this is the strongest and cheapest attack, if keys ever leak.
    """
    return SharedKeys(
        defense, num_steps=200 if options.steps is None else options.steps, **options.ball
    )
