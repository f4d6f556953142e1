"""What ``experiments.reproduce`` runs for each data set, and how a budget scales it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from experiments.reproduction import defenses
from experiments.reproduction.parts import Draft, Plan
from purify_jax.checks import check_choice, check_count


@dataclasses.dataclass(frozen=True)
class Suite:
    """The full plan of a data set; ``minutes`` is what it takes on two CPU cores."""

    minutes: float
    ebm_steps: int
    classifier_steps: int
    epsilons: tuple[float, ...]
    paper: tuple[int, int, int]  # images, steps, EOT
    honest: tuple[int, int, int]
    detection_images: int
    corruption_images: int
    certification: tuple[int, int]  # images, n
    sigma: float
    clean_images: int = 0  # for a part without attacks, beside the clean rows of the others
    norms: tuple[tuple[str, float], ...] = ()  # further (norm, ε)
    trained_by_demo: bool = False
    on_purified: bool = False  # the classifier trains on purified images
    beside_attacks: bool = True  # also detection, corruptions and certification
    probe_images: int = 0


_DIGITS = Suite(
    minutes=15,
    ebm_steps=6000,
    classifier_steps=800,
    epsilons=(0.15,),
    paper=(256, 40, 15),
    honest=(128, 250, 1),
    detection_images=180,
    corruption_images=360,
    certification=(100, 2000),
    sigma=0.25,
    trained_by_demo=True,
    probe_images=48,
)

#: Needs a GPU or TPU; the minutes are those of the papers' accounts, not measured.
_FULL_CIFAR10 = Suite(
    minutes=2880,
    ebm_steps=300_000,
    classifier_steps=78_200,
    epsilons=(8 / 255,),
    norms=(("l2", 0.5),),
    paper=(512, 40, 15),
    honest=(512, 250, 1),
    detection_images=512,
    corruption_images=1000,
    certification=(100, 1000),
    sigma=0.25,
    clean_images=10_000,
)

SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "digits": _DIGITS,
        "digits_best": dataclasses.replace(
            _DIGITS, trained_by_demo=False, on_purified=True, beside_attacks=False
        ),
        "mnist": Suite(
            minutes=60,
            ebm_steps=20_000,
            classifier_steps=4000,
            epsilons=(0.3, 0.2),
            paper=(256, 8, 4),
            honest=(128, 250, 1),
            detection_images=256,
            corruption_images=256,
            certification=(100, 1000),
            sigma=0.5,
            clean_images=10_000,
        ),
        "adp_cifar10": _FULL_CIFAR10,
        "cifar10_best": dataclasses.replace(
            _FULL_CIFAR10,
            minutes=300,
            ebm_steps=60_000,
            classifier_steps=39_100,
            on_purified=True,
            beside_attacks=False,
        ),
    }
)

#: Section of a config → what its network is to a defense.
_ROLES: Mapping[str, str] = MappingProxyType({"ebm": "score_model", "classifier": "classifier"})


def with_fewer_images(plan: Plan, images: int) -> Plan:
    """The plan with at most so many images in every evaluation: a first look with attacks of full strength."""
    check_count("images", images)

    def fewer(argument: str) -> str:
        name, _, given = argument.partition("=")
        return f"{name}={min(images, int(given))}" if name == "--images" else argument

    parts = [part._replace(command=[fewer(x) for x in part.command]) for part in plan.parts]
    return plan._replace(parts=parts, note=f"{plan.note} At most {images} images.")


#: All that ``experiments.reproduce`` knows: data sets, and the defenses of CIFAR-10 on two CPU cores.
NAMES = sorted([*SUITES, *defenses.DEFENSES])


def plan(name: str, budget: float | None, workdir: Path, data_dir: str | None) -> Plan:
    """The commands of a suite within a budget in minutes (None: the full plan)."""
    check_choice("suite", name, NAMES)
    if name in defenses.DEFENSES:
        return defenses.plan(name, budget, workdir, data_dir)
    suite = SUITES[name]
    draft = Draft(workdir, data_dir, budget, suite.minutes)
    steps = {
        network: max(100, round(number * draft.factor / 100) * 100)
        for network, number in (("ebm", suite.ebm_steps), ("classifier", suite.classifier_steps))
    }
    score_model, classifier = _train(draft, name, suite, steps)
    draft.models = [f"--score_model={score_model}", f"--classifier={classifier}", *draft.data]
    if suite.clean_images:
        draft.clean("clean", suite.clean_images)
    threats = [("linf", e) for e in suite.epsilons] + list(suite.norms)
    for norm, epsilon in threats:
        for kind, (images, attack_steps, eot) in {
            "paper": suite.paper,
            "honest": suite.honest,
        }.items():
            effort = (draft.scaled(attack_steps, 2), draft.scaled(eot, min(eot, 2)))
            probes = f"--probe_images={suite.probe_images}"
            draft.attack(kind, norm, epsilon, images, *effort, probes)
    if suite.beside_attacks:
        _add_others(draft, suite, *threats[0])
    if name == "digits":
        norm, epsilon = threats[0]
        threat = (f"--norm={norm}", f"--epsilon={epsilon:.6g}", draft.images(64))
        draft.add("comparison", "compare", *draft.models, *threat)
    trained = f"{steps['ebm']} EBM steps, {steps['classifier']} classifier steps"
    note = f"{draft.budget}; {trained}."
    return Plan(draft.parts, score_model, classifier, note, name)


def _train(draft: Draft, name: str, suite: Suite, steps: Mapping[str, int]) -> tuple[Path, Path]:
    """Adds the trainings; returns the score model's file and the classifier's."""
    flags = {network: f"--config.{network}.steps={number}" for network, number in steps.items()}
    if suite.trained_by_demo:
        path = f"--config=experiments/configs/{name}.py"
        draft.add("demo", "quickstart", path, *flags.values(), draft.images(256))
        folder = draft.workdir / "demo"
        return folder / "score_model.safetensors", folder / "classifier.safetensors"
    made: dict[str, Path] = {}
    for network, flag in flags.items():
        given = {"score_model": made["ebm"]} if suite.on_purified and made else {}
        shipped = {"model.safetensors": f"{name}_{_ROLES[network]}.safetensors"}
        folder = draft.workdir / network
        draft.train(network, f"train_{network}", flag, given, folder, shipped, name)
        made[network] = folder / "model.safetensors"
    return made["ebm"], made["classifier"]


def _add_others(draft: Draft, suite: Suite, norm: str, epsilon: float) -> None:
    """Adds detection, corruptions and certification."""
    detected = draft.scaled(suite.detection_images, 16)
    draft.add(
        "detection", "detect", *draft.models, f"--norm={norm}", f"--epsilon={epsilon:.6g}",
        f"--images={detected}", f"--calibration_images={detected}", "--steps=20", "--eot=2",
    )  # fmt: skip
    draft.add("corruptions", "corruptions", *draft.models, draft.images(suite.corruption_images))
    images, samples = suite.certification
    # The smoothing noise takes the place of the purifier's own: more would only blur the answer.
    draft.add(
        "certification", "certify", *draft.models, f"--sigma={suite.sigma}",
        draft.images(images, 4), f"--n={draft.scaled(samples, 100)}",
        "--noise_scale=0", "--num_restarts=1",
    )  # fmt: skip
