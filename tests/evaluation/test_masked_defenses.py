"""Five defenses that hide their gradients in ways no other test uses, and five that do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax import purifiers
from purify_jax.attacks.suites import Options
from purify_jax.evaluation import red_flags

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits_train():
    return pj.data.load_split("digits", "train")


def _causes(defense, digits_test):
    probes = red_flags.probe(
        jax.random.key(0), defense, digits_test.take(24), Options(epsilon=0.15)
    )
    flags = red_flags.red_flags((), probes)
    return [flag.cause for flag in flags], probes["health"]


def _after(purifier, change):
    def changed(keys, images):
        purified, info = purifier(keys, images)
        return change(purified), info

    return changed


def _snap(digits_train):
    """Every purified image becomes the nearest of 200 training images."""
    known = jnp.asarray(digits_train.batch(np.arange(200))[0]).reshape(200, -1)

    def snap(purified):
        flat = purified.reshape(-1, known.shape[1])
        distances = jnp.sum((flat[:, None] - known[None]) ** 2, axis=-1)
        return known[jnp.argmin(distances, axis=-1)].reshape(purified.shape)

    return snap


def _shatter(purified):
    """A ripple too fine to see, whose slope of ±400 drowns the image's own."""
    return purified + 0.02 * jnp.sin(20_000 * purified)


def _stop_half(purified):
    """The right half of the image does not tell where it came from, and the left half does."""
    half = purified.shape[-2] // 2
    return jnp.concatenate(
        [purified[..., :half, :], jax.lax.stop_gradient(purified[..., half:, :])], axis=-2
    )


NO_GRADIENT = "passes no gradient"


def test_a_hard_snap_to_training_images(defense, digits_train, digits_test):
    masked = defense.replace(purifier=_after(defense.purifier, _snap(digits_train)))
    causes, _ = _causes(masked, digits_test)
    assert any(f"the purifier {NO_GRADIENT}" in cause for cause in causes)


def test_a_shattered_sine(defense, digits_test):
    causes, health = _causes(
        defense.replace(purifier=_after(defense.purifier, _shatter)), digits_test
    )
    assert any(cause.startswith("the gradient is not the derivative") for cause in causes), health


def test_one_branch_stopped(defense, digits_test):
    causes, health = _causes(
        defense.replace(purifier=_after(defense.purifier, _stop_half)), digits_test
    )
    assert any(cause.startswith("the gradient is not the derivative") for cause in causes), health


def test_exploding_scores(defense, digits_test):
    """A score 10⁶ times too large: every step ends at the bounds, or in no number at all."""
    score = defense.purifier.score_fn
    exploding = defense.purifier.replace(score_fn=lambda x: 1e6 * score(x) * jnp.exp(30 * x))
    causes, health = _causes(defense.replace(purifier=exploding), digits_test)
    known = ("gradients are not finite", "gradients vanish", "the gradient is not the derivative",
             f"the purifier {NO_GRADIENT}")  # fmt: skip
    assert any(cause.startswith(known) for cause in causes), (causes, health)


def test_rounded_logits(defense, digits_test):
    logits = defense.logits_fn
    rounded = defense.replace(logits_fn=lambda x: jnp.round(logits(x)))
    causes, _ = _causes(rounded, digits_test)
    assert any(f"the classifier {NO_GRADIENT}" in cause for cause in causes)


@pytest.mark.parametrize(
    "plain", ["blur", "fewer steps", "fewer restarts", "mean of logits", "undefended"]
)
def test_no_flag_on_plain_defenses(defense, digits_test, plain):
    adp = defense.purifier
    honest = {
        "blur": lambda: defense.replace(purifier=purifiers.gaussian_blur(0.5)),
        "fewer steps": lambda: defense.replace(purifier=adp.replace(num_steps=2)),
        "fewer restarts": lambda: defense.replace(purifier=adp.replace(num_restarts=1)),
        "mean of logits": lambda: defense.replace(combine=pj.defense.mean_logits),
        "undefended": lambda: pj.undefended(defense.logits_fn),
    }[plain]()
    causes, health = _causes(honest, digits_test)
    assert causes == [], health
