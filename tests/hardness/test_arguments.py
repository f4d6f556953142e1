"""Every argument of the public functions against everything that it may not be: one line says which it was."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax import attacks, corruptions, diffusions, noise, purifiers
from purify_jax.attacks import suites
from purify_jax.checks import InputError
from purify_jax.evaluation import certification, detection, records, statistics
from purify_jax.evaluation.suite_runs import SuiteRun
from purify_jax.training import AirbenchSettings, CropAndPurify
from purify_jax.training.settings import Settings

#: A text, a bool, nothing, a list: none of these is a number. What is none of a kind follows.
_NONE = [None, "abc", "3", True, [], {}, math.nan, math.inf, -math.inf]
BAD: Mapping[str, list[Any]] = {
    "count": [*_NONE, 0, -1, 2.5, -(10**9)],
    "count from 0": [*_NONE, -1, 2.5],
    "number": _NONE,
    "positive": [*_NONE, 0, -1, -1e-9],
    "at least 0": [*_NONE, -1, -1e-9],
    "share": [*_NONE, -0.1, 1.5],
    "inside": [*_NONE, 0, 1, -0.5, 2],
    "norm": ["l3", "", "LINF!", 2, None, []],
    "seed": [*_NONE, -1, 2**32, 2**70, 0.5],
    "severity": [*_NONE, 6, 2.5, -1],
    "quality": [*_NONE, 0, 101, -3, 2.5],
    "levels": [[], [0.0], [-1.0], [math.nan], [0.1, 0.5], ["x"], [0.5, 0.5, math.inf]],
    "corruption": ["rain", "", "../fog", None, 3],
    "schedule": ["foo", "", None, 3],
    "split": [
        "", "tset", "test[", "test[5:2]", "test[0:0]", "test[a:b]", "../x", "test[:1e3]", "test[:10%", "test]",
        "test[10%:5%]", "test[400:]", "test[:-400]", "test[::2]", "test[1:2:3]", "train+test", "test\n",
    ],
    "data set": ["../digits", "", "di gits", "/etc/passwd", "x" * 200, None, 3, "mnist"],
    "pixels": [
        np.zeros((2, 8, 8, 1), np.uint8), np.full((2, 8, 8, 1), np.nan, np.float32), np.zeros((8, 8, 1)),
        np.full((2, 8, 8, 1), 255.0, np.float32), np.full((2, 8, 8, 1), -0.1, np.float32), [[0.0]], "x",
        None, np.full((2, 8, 8, 1), np.inf, np.float32), np.zeros((2, 2, 8, 8, 1), np.float32),
    ],
    "labels": [
        np.array([0, 10]), np.array([-1, 0]), np.array([0.0, 1.0]), np.zeros((2, 1), int), [0, 1],
        np.array([0]), np.array([0, 1, 2]),
    ],
    "classes": [*_NONE, 0, -1, 2.5],
}  # fmt: skip
#: What the line says, where that is the same for all functions.
SAID = {
    **dict.fromkeys(("count", "count from 0", "seed"), "got .*expected a whole number"),
    **dict.fromkeys(("number", "positive", "at least 0", "share", "inside"), "got .*expected"),
}

_IMAGES = np.random.default_rng(0).uniform(0.2, 0.8, (2, 8, 8, 1)).astype(np.float32)
_WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(64, 10)), jnp.float32)
_LABELS = np.array([0, 1], np.int32)


def _logits(images):
    return jnp.asarray(images).reshape(-1, 64) @ _WEIGHTS


_score = lambda x: -x
_noise_score = lambda x, sigma: -x
_defense = pj.undefended(_logits)
_gradient = attacks.ExactGradient(_defense)
_data = lambda: pj.data.Dataset("squares", "test", _IMAGES, _LABELS, 10)
_key = lambda: jax.random.key(0)


class Target(NamedTuple):
    """A function, arguments that are fine, and the kind of each one that is changed ("?": None is fine too)."""

    name: str
    call: Callable[..., Any]
    fine: Mapping[str, Any]
    kinds: Mapping[str, str]


def _target(name: str, call: Callable[..., Any], /, **arguments: tuple[Any, str]) -> Target:
    fine = {k: value for k, (value, _) in arguments.items()}
    return Target(name, call, fine, {k: kind for k, (_, kind) in arguments.items()})


_ball = {"norm": ("linf", "norm"), "epsilon": (0.1, "at least 0")}
_steps = {"num_steps": (2, "count"), "num_restarts": (1, "count")}
_chain = {**_steps, "step_size": (0.1, "at least 0"), "temperature": (1.0, "at least 0")}
TARGETS = [
    _target("pgd", lambda **k: attacks.PGD(_gradient, **k), **_ball, num_steps=(2, "count"), step_size=(0.1, "at least 0?")),
    _target("apgd", lambda **k: attacks.APGD(_gradient, **k), **_ball, **_steps),
    _target("square", lambda **k: attacks.Square(_defense, **k), **_ball, num_queries=(5, "count"), num_samples=(1, "count"), initial_share=(0.3, "share")),
    _target("eot", lambda **k: attacks.EOT(_gradient, **k), num_samples=(2, "count"), samples_at_once=(1, "count?")),
    _target("spsa", lambda **k: attacks.SPSA(_defense, **k), num_queries=(4, "count"), delta=(0.01, "positive"), queries_at_once=(2, "count")),
    _target("suite", lambda **k: suites.build("honest", _defense, suites.Options(**k)), **_ball, steps=(2, "count?"), eot=(2, "count?"), samples_at_once=(1, "count?"), surrogate_restarts=(1, "count?")),
    _target("ADP", lambda **k: pj.ADP(_score, **k), **_steps, noise_scale=(0.25, "at least 0"), stop_threshold=(0.0, "at least 0"), restarts_at_once=(1, "count?")),
    _target("adaptive", lambda **k: purifiers.Adaptive(**k), rate=(0.05, "at least 0"), min_step=(1e-5, "at least 0"), max_step=(0.1, "positive")),
    _target("constant", lambda **k: purifiers.Constant(**k), alpha=(0.1, "at least 0")),
    _target("finite_difference", lambda **k: purifiers.FiniteDifference(**k), delta=(1e-3, "positive")),
    _target("secant", lambda **k: purifiers.Secant(**k), initial_curvature=(1.0, "number")),
    _target("Langevin", lambda **k: purifiers.Langevin(_score, **k), **_chain),
    _target("mala", lambda **k: purifiers.MALA(_score, **k), **{**_chain, "temperature": (1.0, "positive")}),
    _target("annealed", lambda **k: purifiers.Annealed(_noise_score, **k), sigmas=([0.5, 0.1], "levels"), steps_per_level=(1, "count"), rate=(0.5, "at least 0"), temperature=(0.0, "at least 0"), num_restarts=(1, "count")),
    _target("probability_flow", lambda **k: purifiers.ProbabilityFlow(_noise_score, **k), sigmas=([0.5, 0.1], "levels"), num_restarts=(1, "count")),
    _target("reverse_sde", lambda **k: purifiers.ReverseSDE(_noise_score, **k), sigmas=([0.5, 0.1], "levels"), num_restarts=(1, "count")),
    _target("tweedie", lambda **k: purifiers.tweedie(_noise_score, **k), sigma=(0.2, "positive"), num_restarts=(1, "count")),
    _target("gaussian_blur", lambda **k: purifiers.gaussian_blur(**k), sigma=(0.6, "at least 0")),
    _target("jpeg", lambda **k: purifiers.jpeg(**k), quality=(50, "quality")),
    _target("diffpure", lambda **k: purifiers.DiffPureSDE(diffusions.VP(_score), **k), t_star=(0.1, "positive"), num_steps=(5, "count")),
    _target("geometric", lambda **k: noise.geometric(**k), largest=(1.0, "positive"), smallest=(0.1, "positive"), num_levels=(3, "count")),
    _target("linear", lambda **k: noise.linear(**k), largest=(1.0, "positive"), smallest=(0.1, "positive"), num_levels=(3, "count")),
    _target("patterns", lambda **k: noise.patterns(**k), amplitude=(0.1, "at least 0")),
    _target("SuiteRun", lambda **k: SuiteRun(**k), draws=(1, "count"), probe_images=(0, "count from 0")),
    _target("CropAndPurify", lambda **k: CropAndPurify(**k), crop_padding=(0, "count from 0"), share=(0.0, "share")),
    _target("AirbenchSettings", lambda **k: AirbenchSettings(**k), filter_rate=(0.5, "at least 0"), label_smoothing=(0.1, "share")),
    _target("certify", lambda **k: certification.check_settings(**k), sigma=(0.25, "positive"), n0=(5, "count"), n=(10, "count"), alpha=(0.01, "inside")),
    _target("fit_threshold", lambda **k: detection.fit_threshold([1.0, 2.0], **k), false_positive_rate=(0.05, "share")),
    _target("wilson", lambda **k: statistics.wilson(**k), successes=(1, "count from 0"), total=(2, "count from 0"), confidence=(0.95, "inside")),
    _target("settings", lambda **k: Settings(**k), num_steps=(2, "count"), batch_size=(2, "count"), learning_rate=(1e-3, "at least 0"), schedule=("cosine", "schedule"), warmup_steps=(0, "count from 0"), clip_norm=(1.0, "positive?"), weight_decay=(0.0, "at least 0"), ema_decay=(0.9, "share"), seed=(0, "seed"), steps_per_dispatch=(1, "count"), checkpoint_every=(1, "count")),
    _target("corrupt", lambda **k: corruptions.corrupt(**k), images=(_IMAGES, "pixels"), name=("contrast", "corruption"), severity=(1, "severity"), seed=(0, "seed")),
    _target("load_split", lambda **k: pj.load_split(**k), name=("digits", "data set"), split=("test[:5]", "split")),
    _target("Dataset", lambda **k: pj.data.Dataset("x", "test", _IMAGES, **k), labels=(_LABELS, "labels"), num_classes=(10, "classes")),
    _target("take", lambda **k: _data().take(**k), count=(1, "count")),
    _target("evaluate", lambda **k: pj.evaluation.evaluate(_key(), _defense, {}, _data(), **k), draws=(1, "count")),
    _target("purify", lambda **k: pj.ADP(_score, num_steps=1, num_restarts=1)(pj.image_keys(_key(), np.arange(2)), **k), images=(_IMAGES, "pixels")),
    _target("scoring", lambda **k: records.accuracy([{"attack": "clean", "index": 0, "one_draw": True}], **k), attack=("clean", "corruption"), scoring=("one_draw", "schedule")),
]  # fmt: skip


def outcome(target: Target, argument: str, bad: Any) -> str:
    try:
        return f"accepted: {target.call(**{**target.fine, argument: bad})!r}"
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_an_argument_may_not_be_is_one_line(target):
    target.call(**target.fine)
    for argument, kind in target.kinds.items():
        name = kind.removesuffix("?")
        wanted = re.compile(f"(?!accepted).*{SAID.get(name, '')}.*")
        found = {f"{argument}={bad!r}": outcome(target, argument, bad) for bad in BAD[name]}
        if kind.endswith("?"):
            assert found.pop(f"{argument}=None").startswith("accepted")
        assert {k: text for k, text in found.items() if not wanted.fullmatch(text)} == {}
