"""Streams of randomness are disjoint: every draw of every purifier, attack and loss is recorded."""

import inspect
import os
import sys
from collections import defaultdict
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for

import purify_jax as pj
from purify_jax import attacks, keys, losses, networks, noise, purifiers, training
from purify_jax.defense import Defense
from purify_jax.evaluation import Draws, certification, detection
from purify_jax.evaluation.probes import health
from purify_jax.evaluation.probes.sweeps import AttackedAndScored
from tests.modes.everything import IMAGES, LABELS, all_attacks, all_purifiers, logits, score

#: By its folder: a checkout, with the environment inside it, may well be called purify_jax too.
PACKAGE = str(Path(pj.__file__).parent) + os.sep
DRAWS = ("normal", "truncated_normal", "uniform", "bernoulli", "randint", "rademacher", "laplace")


class Recorder:
    """Which code drew from which key, and which keys were folded or split."""

    def __init__(self, monkeypatch):
        self.drawn, self.folded, self.split = defaultdict(set), set(), set()
        for name in DRAWS:
            monkeypatch.setattr(jax.random, name, self._drawing(getattr(jax.random, name)))
        monkeypatch.setattr(jax.random, "fold_in", self._into(jax.random.fold_in, self.folded))
        monkeypatch.setattr(jax.random, "split", self._into(jax.random.split, self.split))

    def _drawing(self, original):
        def draw(key, *args, **kwargs):
            site = self._site()
            remember = lambda data: self.drawn[tuple(np.asarray(data).tolist())].add(site)
            jax.debug.callback(remember, jax.random.key_data(key))
            return original(key, *args, **kwargs)

        return draw

    def _into(self, original, into):
        def fold(key, *args, **kwargs):
            remember = lambda data: into.add(tuple(np.asarray(data).tolist()))
            jax.debug.callback(remember, jax.random.key_data(key))
            return original(key, *args, **kwargs)

        return fold

    @staticmethod
    def _site():
        """The line that asked for the draw, outside the helpers that draw for others."""
        frame = sys._getframe(2)
        inside = lambda f: not f.f_code.co_filename.startswith(PACKAGE) or f.f_code.co_name in (
            "_draw", "<lambda>", "normal_like", "_signs",
        )  # fmt: skip
        while frame.f_back and (inside(frame) or frame.f_code.co_filename.endswith("keys.py")):
            frame = frame.f_back
        return f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}"

    @staticmethod
    def run(function, *arguments):
        """As one program, of a function of its own: a program of an earlier test would call that test's recorder."""
        jax.jit(lambda *given: function(*given))(*arguments)

    def check(self, draws=True):
        jax.effects_barrier()
        assert bool(self.drawn) == draws
        shared = {tuple(sorted(sites)) for sites in self.drawn.values() if len(sites) > 1}
        assert not shared, f"two places draw from one key: {shared}"
        both = {site for key in self.folded & set(self.drawn) for site in self.drawn[key]}
        assert not both, f"drawn from and folded: {both}"
        assert not self.split & self.folded
        assert not self.split & set(self.drawn)


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch)


DETERMINISTIC = ("denoise", "blur")


@pytest.mark.parametrize("name", sorted(all_purifiers()))
def test_a_purifier_never_uses_a_key_twice(recorder, name):
    recorder.run(all_purifiers()[name], keys_for(2), IMAGES)
    recorder.check(draws=name not in DETERMINISTIC)


def test_every_purifier_of_the_library_is_recorded():
    """By class; a new one must be added above."""
    recorded = {type(p) for p in all_purifiers().values()}
    abstract = {
        getattr(purifiers, name)
        for name in purifiers.__all__
        if name.endswith("Purifier")  # a part of others, or the protocol
    }
    public = {getattr(purifiers, name) for name in purifiers.__all__}
    classes = {
        c
        for c in public
        if isinstance(c, type)
        and callable(c)
        and "keys" in inspect.signature(c.__call__).parameters
    }
    assert classes - abstract <= recorded


@pytest.mark.parametrize("name", sorted(all_attacks()))
def test_an_attack_and_the_defense_inside_it_share_no_key(recorder, name):
    recorder.run(all_attacks()[name], keys_for(2), IMAGES, LABELS)
    recorder.check()


def test_scoring_shares_no_key_with_the_attack(recorder):
    defense = Defense(all_purifiers()["adp"], logits)
    attack = attacks.PGD(attacks.ExactGradient(defense), epsilon=0.1, num_steps=12)
    run = AttackedAndScored(attack=attack, scorer=Draws(defense, draws=5))
    recorder.run(run, keys_for(2), IMAGES, LABELS)
    recorder.check()


def test_the_probes_of_red_flags(recorder):
    defense = Defense(all_purifiers()["adp"], logits)
    recorder.run(health.Health(defense=defense), keys_for(2), IMAGES, LABELS)
    recorder.check()


@pytest.mark.ci
def test_a_health_probe_does_not_depend_on_the_batch():
    """As it was, the random cotangent and signs were one draw of the whole batch's shape."""
    defense = Defense(all_purifiers()["adp"], lambda x: jnp.round(8 * logits(x)) + logits(x))
    probe = jax.jit(health.Health(defense=defense))
    together = probe(keys_for(2), IMAGES, LABELS)
    alone = probe(keys_for(2)[1:], IMAGES[1:], LABELS[1:])
    chex.assert_trees_all_equal(jax.tree.map(lambda a: a[1:], together), alone)


def test_detection_and_certification(recorder):
    defense = Defense(all_purifiers()["adp"].replace(num_restarts=9), logits)
    statistic = detection.EnergyDrop(score, defense.purifier)
    judge = detection.Judge(defense, statistic, 0.1)
    recorder.run(judge, keys_for(2), IMAGES, LABELS)
    counts = certification.ClassCounts(defense, 0.2, num_samples=6, samples_at_once=3)
    recorder.run(counts, keys_for(2, seed=1), IMAGES, jnp.zeros(2, jnp.int32))
    recorder.check()


def test_training(recorder):
    levels = jnp.array([0.1, 0.5])
    losses.denoising_score_matching(score, keys_for(2), IMAGES, levels, perturb=noise.patterns(0.2))
    recorder.check()


@pytest.mark.ci
def test_networks_that_are_trained_with_neighbouring_seeds_share_no_key(recorder):
    """As it was, seed 0's classifier and seed 1's score model had one key, drawn from and folded."""
    images = np.linspace(0, 1, 4 * 16).reshape(4, 4, 4, 1).astype(np.float32)
    data = pj.data.Dataset("tiny", "train", images, np.array([0, 1, 0, 1]), 2)
    score, convnet = (
        networks.MLP(features=(4,)),
        networks.ConvNet(features=(2,), hidden=4, num_outputs=2),
    )
    for seed in (1, 0):
        steps = {
            "num_steps": 1,
            "batch_size": 2,
            "seed": seed,
            "flip": True,
            "steps_per_dispatch": 1,
        }
        settings = training.ScoreSettings(**steps, sigmas=(0.1, 0.5))
        model = training.train_score_model(score, data, settings).model
        if seed == 1:
            continue
        settings = training.ClassifierSettings(**steps, crop_padding=1, purified=0.5)
        adp = all_purifiers()["adp"]
        classifier = training.train_classifier(convnet, data, settings, purifier=adp).model
        settings = training.DenoiserSettings(**steps)
        training.train_score_model(networks.MLP(features=(5,)), data, settings)
        attack = training.adversarial.Attack(0.1, num_steps=2)
        settings = training.DefenseSettings(**steps, attack=attack, probe_images=1, probe_steps=1)
        training.train_defense(
            classifier, data, settings, score_model=model,
            purification={"noise_scale": 0.1, "num_steps": 1},
        )  # fmt: skip
    recorder.check()


def test_augmentation(recorder):
    augment = training.CropAndPurify(all_purifiers()["adp"], share=0.5, crop_padding=1)
    recorder.run(augment, keys_for(2), IMAGES)
    recorder.check()


def test_named_streams_are_apart_from_each_other_and_from_counters():
    numbers = list(keys.STREAMS.values())
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) >= keys.COUNTERS


@pytest.mark.ci
def test_the_recorder_sees_what_was_wrong_with_spsa(recorder):
    """As it was: directions and restarts folded the same integers into the same keys."""
    defense = Defense(all_purifiers()["adp"], logits)
    image_keys = keys_for(2)
    for index in range(3):
        draw = lambda key: jax.random.rademacher(key, (4, 4, 1))
        jax.vmap(draw)(keys.fold_keys(image_keys, index))
        defense(image_keys, IMAGES)
    with pytest.raises(AssertionError, match="two places draw"):
        recorder.check()
