"""The defenses of CIFAR-10 on two CPU cores: what each trains, and how each is attacked.

A network that several defenses need is trained once, in a folder that they share; a suite that finds it
finished goes on from there. docs/experiments.md says what was predicted of each before it ran.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.reproduction.parts import Draft, Plan

_MODEL, _CLASSIFIER, _SCORE_MODEL = (
    "model.safetensors",
    "classifier.safetensors",
    "score_model.safetensors",
)


class Network(NamedTuple):
    """How a network is trained: binary, config, and flag → the network that it begins with.

    shipped: file → its name in pretrained/; the first says that training is finished.
    fraction: of the config's steps, where two networks of one config share a budget of time.
    """

    binary: str
    config: str
    given: Mapping[str, str]
    shipped: Mapping[str, str]
    fraction: float = 1.0

    @property
    def section(self) -> str:
        """The config's section that trains it."""
        return self.binary.removeprefix("train_")

    @property
    def model(self) -> str:
        """The file that says that training is finished."""
        return next(iter(self.shipped))

    def steps(self) -> int:
        """The config's: a budget scales them by flag."""
        return round(self._configured().steps * self.fraction)

    def purification(self) -> list[str]:
        """Flags: how the images that a classifier was fine-tuned on were purified, where not as the model says."""
        given = {} if self.section == "defense" else self._configured().get("purification", {})
        return [f"--{name}={value}" for name, value in given.items()]

    def _configured(self) -> ConfigDict:
        config = importlib.import_module(f"experiments.configs.{self.config}").get_config()
        return config[self.section]


def _tuned(config: str, score_model: str, ships: str) -> Network:
    given = {"start": "classifier", "score_model": score_model}
    return Network("train_classifier", config, given, {_MODEL: f"{ships}.safetensors"})


#: In the order in which they are trained.
NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "classifier": Network(
            "train_classifier", "cifar10_airbench", {}, {_MODEL: "cifar10_classifier.safetensors"}
        ),
        "dsm": Network("train_ebm", "cifar10_dsm", {}, {_MODEL: "cifar10_dsm.safetensors"}),
        "edm": Network("train_ebm", "cifar10_edm", {}, {_MODEL: "cifar10_edm.safetensors"}),
        "purified": _tuned("cifar10_purified", "dsm", "cifar10_classifier_purified"),
        "denoised": _tuned("cifar10_denoised", "edm", "cifar10_classifier_denoised"),
        "defense": Network(
            "train_defense",
            "cifar10_defense",
            {"classifier": "classifier", "score_model": "edm"},
            {
                _CLASSIFIER: "cifar10_defense_classifier.safetensors",
                _SCORE_MODEL: "cifar10_defense_score_model.safetensors",
            },
            0.5,  # a step costs twice the control's: the same time
        ),
        "control": Network(
            "train_defense",
            "cifar10_defense",
            {"classifier": "classifier"},
            {_CLASSIFIER: "cifar10_classifier_adversarial.safetensors"},
        ),
    }
)


class Recipe(NamedTuple):
    """A defense: its name, what it is, the networks that are evaluated, and how.

    score_model: the network; None for a classifier alone. images: of `paper` and `honest` at Linf;
    0 for certification instead. minutes: on two CPU cores, an estimate. purification: flags, where not as the
    networks say. model: its name in pretrained/, and it is shown on photographs; "" for the suite's, and it is
    not. limits: what its results do not cover. parts: its purifier and its classifier in README's table; None
    to leave it out there.
    """

    name: str
    about: str
    minutes: float
    classifier: str
    score_model: str | None
    images: int
    clean_images: int
    limits: str
    purification: tuple[str, ...] = ()
    model: str = ""
    parts: tuple[str, str] | None = None

    def flags(self) -> list[str]:
        """How the networks purify, as flags."""
        return [*NETWORKS[self.classifier].purification(), *self.purification]


_SMALL = "Photographs of 32×32 pixels in the ten classes of CIFAR-10; each network was trained once, from seed 0. "
_FEW = (
    "The paper's method with networks far smaller than its own. It does not hold against an attacker who "
    "differentiates through it: quote `honest`, not `paper`. Attacks looked through one restart of the ten at "
    "a time. An answer takes 100 calls of the purifier's network."
)

DEFENSES: Mapping[str, Recipe] = MappingProxyType(
    {
        "cifar10_adp": Recipe(
            "ADP, σ = 0.25", "the classifier is not retrained",
            600, "classifier", "dsm", 256, 1000, _SMALL + _FEW,
            parts=("ADP, σ = 0.25", "standard"),
        ),
        "cifar10_adp_weak_noise": Recipe(
            "ADP, σ = 0.1", "λ = 0.25, the classifier is not retrained",
            300, "classifier", "dsm", 128, 1000, _SMALL + _FEW,
            purification=("--noise_scale=0.1", "--rate=0.25"),
            parts=("ADP, σ = 0.1", "standard"),
        ),
        "cifar10_purified": Recipe(
            "ADP, σ = 0.1, fine-tuned", "λ = 0.25, the classifier is fine-tuned on purified images",
            300, "purified", "dsm", 128, 1000, _SMALL + _FEW,
            parts=("ADP, σ = 0.1", "fine-tuned"),
        ),
        "cifar10_defense": Recipe(
            "adversarially trained, one step",
            "one denoising step; network and classifier train together on attacks through both",
            600, "defense", "defense", 512, 10_000,
            _SMALL
            + "Trained against attacks of Linf 8/255 alone. Under exact gradients the same training of the classifier "
            "alone keeps somewhat more (results/cifar10_control): the robustness is the training's, not the purifier's, "
            "which at its own σ no longer denoises better than a blur. Answers are random: an attacker who may submit "
            "an image again meets the worst of several draws, not the average.",
            model="cifar10",
            parts=("one denoising step", "adversarially trained"),
        ),
        "cifar10_control": Recipe(
            "adversarially trained, no purifier", "the same training of the classifier alone",
            400, "control", None, 512, 10_000, _SMALL + "Trained against attacks of Linf 8/255 alone.",
            parts=("none", "adversarially trained"),
        ),
        "cifar10_certified": Recipe(
            "certified, one denoising step", "the classifier is fine-tuned on denoised images",
            600, "denoised", "edm", 0, 1000,
            _SMALL + "Certified on 100 images, by 10,000 answers each under noise of σ = 0.25; never attacked.",
        ),
    }
)  # fmt: skip


def shipped_as(suite: str) -> str:
    """The name in pretrained/ of a suite's model: the suite's own, but for a defense with another."""
    return (DEFENSES[suite].model if suite in DEFENSES else "") or suite


#: The folder of results/ with the records of the networks.
RECORDS = "cifar10_networks"
LINF, L2 = ("linf", 8 / 255), ("l2", 0.5)
#: Threats that no defense here was trained for.
UNSEEN = (L2, ("l2", 1.0), ("l1", 12.0))


def plan(name: str, budget: float | None, workdir: Path, data_dir: str | None) -> Plan:
    """The commands of a defense within a budget in minutes (None: the full plan).

    The networks lie beside ``workdir``, in a folder named :data:`RECORDS`: all defenses share them.
    """
    recipe = DEFENSES[name]
    draft = Draft(workdir, data_dir, budget, recipe.minutes)
    shared = workdir.parent / RECORDS
    path = lambda network: shared / network / NETWORKS[network].model
    needed = {recipe.classifier, recipe.score_model, *NETWORKS[recipe.classifier].given.values()}
    for network, made in NETWORKS.items():
        if network not in needed:
            continue
        steps = f"--config.{made.section}.steps={draft.scaled(made.steps(), 2)}"
        given = {flag: path(other) for flag, other in made.given.items()}
        folder = shared / network
        draft.train(
            network, made.binary, steps, given, folder, made.shipped, made.config, RECORDS
        )  # fmt: skip
    classifier, score_model = path(recipe.classifier), None
    draft.models = [f"--classifier={classifier}", *draft.data]
    if recipe.score_model is not None:
        score_model = path(recipe.score_model)
        if recipe.score_model == recipe.classifier:  # one training made both
            score_model = score_model.with_name(_SCORE_MODEL)
        draft.models = [f"--score_model={score_model}", *draft.models, *recipe.flags()]
        if name == next(n for n, r in DEFENSES.items() if r.score_model == recipe.score_model):
            images = draft.images(512)
            draft.add("denoising", "denoise", f"--score_model={score_model}", *draft.data, images)
    draft.clean("clean", recipe.clean_images)
    if recipe.images:
        _add_attacks(draft, recipe)
    else:
        samples = (draft.images(100, 4), f"--n={draft.scaled(10_000, 100)}")
        denoise = ("--sigma=0.25", "--method=denoise", "--noise_scale=0.25")
        # A classifier that was never shown noise has nothing to certify; leaving it out saves a third of the cost.
        draft.add("certification", "certify", *draft.models, *denoise, *samples, "--noundefended")
    if recipe.model:
        # The model and the images that ship: a user sees the same in a minute.
        draft.add("photographs", "demo", f"--model={recipe.model}")
    note = f"{draft.budget}. {recipe.name}: {recipe.about}."
    return Plan(draft.parts, score_model, classifier, note, shipped_as(name), recipe.limits)


def _add_attacks(draft: Draft, recipe: Recipe) -> None:
    many_calls = recipe.score_model == "dsm"
    # `paper` attacks the bare classifier, too; under `honest` that would cost a third of the time.
    alone = () if recipe.score_model is None else ("--noundefended",)
    # An answer of a hundred network calls: attacks look through one restart of the ten, in fewer
    # steps, and the shared keys' gradients are not paid for.
    cheap = ("--surrogate_restarts=1",) if many_calls else ()
    honest = (*cheap, "--skip=shared keys", *alone) if many_calls else alone
    steps, probes = (100, 8) if many_calls else (250, 32)
    limits = (draft.scaled(steps, 8), 1, f"--probe_images={draft.scaled(probes, 4)}")
    # SPSA asks for 5120 answers an image, more than all the rest; with ADP BPDA+EOT found more wherever
    # both ran.
    short = ("--skip=SPSA", "--probe_images=0", *cheap)
    draft.attack("paper", *LINF, recipe.images, draft.scaled(40, 2), draft.scaled(4, 1), *short)
    draft.attack("honest", *LINF, recipe.images, *limits, *honest)
    unseen = 64 if many_calls else 128
    for threat in UNSEEN:
        draft.attack("honest", *threat, unseen, *limits, *honest)
    draft.add("corruptions", "corruptions", *draft.models, draft.images(unseen))
    if recipe.score_model is not None:
        # The grid takes 4410 gradients an image: too many for a purifier of a hundred calls, whose attacks take
        # 185 over steps alone.
        sweep, images = ("steps", 32) if many_calls else ("steps_eot", 64)
        threat = (f"--norm={LINF[0]}", f"--epsilon={LINF[1]:.6g}", draft.images(images))
        effort = (f"--sweep={sweep}", *(("--eot=1", *cheap) if many_calls else ()))
        fixed = ("--suite=clean", *threat, *effort, "--probe_images=0", *alone)
        draft.add("convergence", "evaluate", *draft.models, *fixed)
