"""What ``experiments.reproduce`` runs for each data set, and how a budget scales it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments.reproduction import rows
from experiments.reproduction.parts import Part, Plan
from purify_jax.checks import InputError, check_count


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
    note: str = ""
    config: str = ""  # of the two trainings, where it is not named like the suite
    trained_by_demo: bool = False
    on_purified: bool = False  # the classifier trains on purified images
    beside_attacks: bool = True  # also detection, corruptions and certification


_DIGITS = Suite(
    minutes=15,
    ebm_steps=6000,
    classifier_steps=800,
    epsilons=(0.15,),
    paper=(256, 40, 15),
    honest=(128, 400, 1),
    detection_images=180,
    corruption_images=360,
    certification=(100, 2000),
    sigma=0.25,
    trained_by_demo=True,
)

#: Needs a GPU or TPU; the minutes are those of the papers' accounts, not measured.
_FULL_CIFAR10 = Suite(
    minutes=2880,
    ebm_steps=300_000,
    classifier_steps=78_200,
    epsilons=(8 / 255,),
    norms=(("l2", 0.5),),
    paper=(512, 40, 15),
    honest=(512, 400, 1),
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
            honest=(128, 400, 1),
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
        "cifar10_small": Suite(
            config="cifar10",
            minutes=60,
            ebm_steps=1500,
            classifier_steps=6000,
            epsilons=(8 / 255,),
            norms=(("l2", 0.5),),
            paper=(16, 4, 2),
            honest=(16, 20, 1),
            detection_images=32,
            corruption_images=16,
            certification=(8, 100),
            sigma=0.1,
            clean_images=1000,
            note=(
                "Small networks, trained as far as a CPU goes; it proves the path on real images and is "
                "no measure of the method."
            ),
        ),
    }
)


def is_done(result: Mapping[str, Any], command: str) -> bool:
    """Whether a part's result is that of this command; one of attacks up to 0.2 has no average and is made anew."""
    of_protocol_1 = "worst_case" in result and "figures" not in result
    return result.get("command") == command and not of_protocol_1


def with_fewer_images(plan: Plan, images: int) -> Plan:
    """The plan with at most so many images in every evaluation: a first look with attacks of full strength."""
    check_count("images", images)

    def fewer(argument: str) -> str:
        name, _, given = argument.partition("=")
        return f"{name}={min(images, int(given))}" if name == "--images" else argument

    parts = [part._replace(command=[fewer(x) for x in part.command]) for part in plan.parts]
    return plan._replace(parts=parts, note=f"{plan.note} At most {images} images.")


#: All that ``experiments.reproduce`` knows: data sets, and the rows of CIFAR-10 on two CPU cores.
NAMES = sorted([*SUITES, *rows.ROWS])


def plan(name: str, budget: float | None, workdir: Path, data_dir: str | None) -> Plan:
    """The commands of a suite within a budget in minutes (None: the full plan)."""
    if name not in NAMES:
        raise InputError(f"suite: got {name!r}, expected one of {NAMES}")
    if name in rows.ROWS:
        return rows.plan(name, budget, workdir, data_dir)
    suite = SUITES[name]
    factor = 1.0 if budget is None else min(1.0, budget / suite.minutes)
    scaled = lambda number, least: max(least, round(number * factor))
    data = [f"--data_dir={data_dir}"] if data_dir else []
    config = f"--config=experiments/configs/{suite.config or name}.py"
    ebm_steps, classifier_steps = (
        max(100, round(n * factor / 100) * 100) for n in (suite.ebm_steps, suite.classifier_steps)
    )
    steps = [f"--config.ebm.steps={ebm_steps}", f"--config.classifier.steps={classifier_steps}"]
    parts = []
    if suite.trained_by_demo:
        folder = workdir / "demo"
        ebm, classifier = folder / "ebm.safetensors", folder / "classifier.safetensors"
        images = f"--images={scaled(256, 16)}"
        parts.append(
            Part(
                "demo",
                ["experiments.quickstart", config, *steps, images, f"--workdir={folder}"],
                folder,
            )
        )
    else:
        ebm, classifier = (workdir / n / "model.safetensors" for n in ("ebm", "classifier"))
        for model, flag in zip(("ebm", "classifier"), steps, strict=True):
            folder = workdir / model
            command = [f"experiments.train_{model}", config, flag, *data, f"--workdir={folder}"]
            if model == "classifier" and suite.on_purified:
                command.append(f"--ebm={ebm}")
            shipped = {"model.safetensors": f"{name}_{model}.safetensors"}
            parts.append(Part(model, command, folder, is_training=True, shipped=shipped))
    models = [f"--ebm={ebm}", f"--classifier={classifier}", *data]

    def add(part: str, binary: str, *args: str) -> None:
        folder = workdir / part
        command = [f"experiments.{binary}", *models, *args, f"--workdir={folder}"]
        parts.append(Part(part, command, folder))

    if suite.clean_images:
        images = f"--images={scaled(suite.clean_images, 16)}"
        arguments = ("--suite=clean", "--epsilon=0", images, "--draws=1", "--probe_images=0")
        add("clean", "evaluate", *arguments, "--batch_size=100")
    balls = [("linf", e) for e in suite.epsilons] + list(suite.norms)
    for norm, epsilon in balls:
        ball = (f"--norm={norm}", f"--epsilon={epsilon:.6g}")
        for kind, (images, attack_steps, eot) in {
            "paper": suite.paper,
            "honest": suite.honest,
        }.items():
            probes = ["--probe_images=48"] if name.startswith("digits") else ["--probe_images=0"]
            add(
                f"{kind}_{norm}_{epsilon:.3g}",
                "evaluate",
                f"--suite={kind}",
                *ball,
                f"--images={scaled(images, 16)}",
                f"--steps={scaled(attack_steps, 2)}",
                f"--eot={scaled(eot, min(eot, 2))}",
                *probes,
            )
    note = "full plan" if factor == 1 else f"{budget:g} of {suite.minutes:g} minutes: {factor:.0%}"
    note = f"{note}; {ebm_steps} EBM steps, {classifier_steps} classifier steps"
    made = Plan(parts, ebm, classifier, f"{note}. {suite.note}".strip(), name)
    if not suite.beside_attacks:
        return made
    norm, epsilon = balls[0]
    detected = scaled(suite.detection_images, 16)
    add(
        "detection", "detect", f"--norm={norm}", f"--epsilon={epsilon:.6g}",
        f"--images={detected}", f"--calibration_images={detected}", "--steps=20", "--eot=2",
    )  # fmt: skip
    add("corruptions", "corruptions", f"--images={scaled(suite.corruption_images, 16)}")
    images, samples = suite.certification
    # The smoothing noise takes the place of the purifier's own: more would only blur the answer.
    add(
        "certification", "certify", f"--sigma={suite.sigma}", f"--images={scaled(images, 4)}",
        f"--n={scaled(samples, 100)}", "--noise_scale=0", "--num_restarts=1",
    )  # fmt: skip
    if name == "digits":
        add(
            "comparison", "compare", f"--norm={norm}", f"--epsilon={epsilon:.6g}",
            f"--images={scaled(64, 16)}",
        )  # fmt: skip
    return made
