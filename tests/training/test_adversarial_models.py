"""Adversarial training of models as they come: continued, without settings, or of no use."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax.checks import InputError
from purify_jax.training import DefenseSettings, adversarial
from purify_jax.training.adversarial import loss as losses

ATTACK = adversarial.Attack(epsilon=0.15)


@pytest.fixture(scope="module")
def shipped():
    return pj.pretrained.load("digits")


@pytest.fixture(scope="module")
def train():
    return pj.data.load_split("digits", "train")


def _few_steps(num_steps, **changes):
    return DefenseSettings(num_steps, attack=ATTACK, batch_size=16, schedule="constant", steps_per_dispatch=2,
                    checkpoint_every=2, **changes)  # fmt: skip


@pytest.mark.ci
def test_a_run_that_continues_knows_the_best_accuracy_of_before(shipped, train, tmp_path):
    def run(num_steps, learning_rate, classifier=shipped.classifier):
        settings = _few_steps(
            num_steps,
            learning_rate=learning_rate,
            clip_norm=None,
            trainable="classifier",
            probe_steps=1,
        )
        execution = pj.Execution(workdir=tmp_path)
        adversarial.train_defense(classifier, train, settings, execution=execution)

    run(2, 0.0)
    with pytest.raises(adversarial.Collapsed, match="fell from 0.* at step 4"):
        run(4, 10.0)
    # The checkpoint holds what became of the classifier: one with other weights is not continued from it.
    zeros = jax.tree.map(jnp.zeros_like, dict(shipped.classifier.variables))
    other = dataclasses.replace(shipped.classifier, variables=zeros)
    with pytest.raises(InputError, match="classifier: its weights are not those that the training"):
        run(4, 0.0, other)


def _with_metadata(score_model, without=(), **changes):
    kept = {name: value for name, value in score_model.metadata.items() if name not in without}
    return dataclasses.replace(score_model, metadata={**kept, **changes})


@pytest.mark.ci
def test_an_energy_model_without_settings_trains_at_the_published_noise(shipped, train):
    """What ``train_score_model`` writes by default has no purification settings."""
    score_model = _with_metadata(shipped.score_model, ("purification",))
    parts = losses.parts_of(shipped.classifier, score_model, {"num_steps": 1})
    loss = losses.DefenseLoss({}, parts=parts, attack=ATTACK)
    images, keys = jnp.asarray(train.images[:4]), pj.image_keys(jax.random.key(1), np.arange(4))
    found = loss.denoising(score_model.params, keys, images)
    expected = pj.losses.denoising_score_matching(
        pj.models.score_fn(score_model), keys, images, jnp.array([0.25]),
        pj.noise.SCALES[score_model.metadata["training"]["scale"]],
    ).mean()  # fmt: skip
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("training", "purification", "message"),
    [
        ({}, {}, "metadata.training.scale: got None, expected one of"),
        (
            {"scale": "per_sigma"},
            {"noise_scale": 0.0},
            "noise_scale, for the denoising loss: got 0",
        ),
    ],
)
def test_a_purifier_without_a_denoising_loss_is_refused(
    shipped, train, training, purification, message
):
    score_model = _with_metadata(shipped.score_model, ("purification",), training=training)
    with pytest.raises(InputError, match=message):
        adversarial.train_defense(
            shipped.classifier,
            train,
            _few_steps(2),
            score_model=score_model,
            purification=purification,
        )
