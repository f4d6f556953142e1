"""The rows of CIFAR-10 on two CPU cores: what each trains, and how each is attacked.

A network that several rows need is trained once, in a folder that they share; a row that finds it
finished goes on from there. docs/experiments.md says what was predicted of each before it ran.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from experiments.reproduction.parts import Part, Plan


class Network(NamedTuple):
    """How a network is trained: binary, config, the flags that name other networks, and its file.

    fraction: of the config's steps, where two networks of one config share a budget of time.
    """

    binary: str
    config: str
    given: Mapping[str, str]
    model: str = "model.safetensors"
    fraction: float = 1.0

    @property
    def section(self) -> str:
        """The config's section that trains it."""
        return {"train_ebm": "ebm", "train_classifier": "classifier"}.get(self.binary, "defense")

    def steps(self) -> int:
        """The config's: a budget scales them by flag."""
        return round(self._configured().steps * self.fraction)

    def purification(self) -> list[str]:
        """Flags: how the images that a classifier was fine-tuned on were purified, where not as the model says."""
        given = {} if self.section == "defense" else self._configured().get("purification", {})
        return [f"--{name}={value}" for name, value in given.items()]

    def _configured(self):
        config = importlib.import_module(f"experiments.configs.{self.config}").get_config()
        return config[self.section]


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "classifier": Network("train_classifier", "cifar10_airbench", {}),
        "dsm": Network("train_ebm", "cifar10_dsm", {}),
        "edm": Network("train_ebm", "cifar10_edm", {}),
        "purified": Network(
            "train_classifier", "cifar10_purified", {"classifier": "classifier", "ebm": "dsm"}
        ),
        "denoised": Network(
            "train_classifier", "cifar10_denoised", {"classifier": "classifier", "ebm": "edm"}
        ),
        "defense": Network(
            "train_defense",
            "cifar10_defense",
            {"classifier": "classifier", "ebm": "edm"},
            "classifier.safetensors",
            0.5,  # a step costs twice the control's: the same time
        ),
        "control": Network(
            "train_defense",
            "cifar10_defense",
            {"classifier": "classifier"},
            "classifier.safetensors",
        ),
    }
)


class Row(NamedTuple):
    """A row: the networks of the defense that is evaluated, and how.

    ebm: the network and its file; None for a classifier alone. images: of `paper` and `honest` at Linf;
    0 for certification instead. minutes: on two CPU cores, an estimate. noise_scales: further (σ, λ) of clean
    images. model: its name in pretrained/, and it is shown on photographs; "" for the suite's, and it is not.
    limits: what its figures do not cover.
    """

    minutes: float
    classifier: str
    ebm: tuple[str, str] | None
    images: int
    clean_images: int
    note: str
    noise_scales: tuple[tuple[float, float], ...] = ()
    model: str = ""
    limits: str = ""


_SMALL = "Photographs of 32×32 pixels in the ten classes of CIFAR-10; each network was trained once, from seed 0. "
_FEW = (
    "The paper's method with networks far smaller than its own. It does not hold against an attacker who "
    "differentiates through it: quote `honest`, not `paper`. Attacks met few images, and looked through one "
    "restart of the ten at a time. An answer takes 200 calls of the purifier's network."
)

ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "cifar10_adp": Row(
            600, "classifier", ("dsm", "model.safetensors"), 64, 1000,
            "Row A: the paper's defense at σ = 0.25, the classifier never retrained.", ((0.1, 0.25),),
            "cifar10_adp",
            _SMALL + _FEW,
        ),
        "cifar10_purified": Row(
            600, "purified", ("dsm", "model.safetensors"), 64, 1000,
            "Row B: the paper's defense at σ = 0.1, the classifier fine-tuned on purified images.",
            limits=_SMALL + _FEW,
        ),
        "cifar10_defense": Row(
            600, "defense", ("defense", "ebm.safetensors"), 512, 10_000,
            "Row C: adversarial training through one denoising step and the classifier.", (), "cifar10",
            _SMALL
            + "Trained against attacks of Linf 8/255 alone. Under exact gradients the same training of the classifier "
            "alone keeps somewhat more (results/cifar10_control): the robustness is the training's, not the purifier's, "
            "which at its own σ no longer denoises better than a blur. Answers are random: who may submit an image "
            "again meets the worst of several draws, not the average.",
        ),
        "cifar10_control": Row(
            400, "control", None, 512, 10_000,
            "Row D: the control of row C, the same training of the classifier alone.",
            limits=_SMALL + "Trained against attacks of Linf 8/255 alone.",
        ),
        "cifar10_certified": Row(
            600, "denoised", ("edm", "model.safetensors"), 0, 1000,
            "Row E: one denoising step, the classifier fine-tuned for it.",
            limits=_SMALL + "Certified on 100 images, by 10,000 answers each under noise of σ = 0.25; never attacked.",
        ),
    }
)  # fmt: skip


def shipped_as(suite: str) -> str:
    """The name in pretrained/ of a suite's model: the suite's own, but for a row with another."""
    return (ROWS[suite].model if suite in ROWS else "") or suite


#: The folder of results/ with the records of the networks.
RECORDS = "cifar10_networks"

_BALLS = (("linf", 8 / 255), ("l2", 0.5))


def plan(name: str, budget: float | None, workdir: Path, data_dir: str | None) -> Plan:
    """The commands of a row within a budget in minutes (None: the full plan).

    The networks lie beside ``workdir``, in a folder named :data:`RECORDS`: all rows share them.
    """
    row = ROWS[name]
    factor = 1.0 if budget is None else min(1.0, budget / row.minutes)
    scaled = lambda number, least: max(least, round(number * factor))
    data = [f"--data_dir={data_dir}"] if data_dir else []
    shared = workdir.parent / RECORDS
    parts = [
        _training(network, shared, data, scaled(NETWORKS[network].steps(), 2))
        for network in _needed(row)
    ]
    classifier = shared / row.classifier / NETWORKS[row.classifier].model
    ebm = None if row.ebm is None else shared / row.ebm[0] / row.ebm[1]
    models = [f"--classifier={classifier}", *data]
    if ebm is not None:
        models = [f"--ebm={ebm}", *models, *NETWORKS[row.classifier].purification()]

    def add(part: str, binary: str, *arguments: str) -> None:
        folder = workdir / part
        command = [f"experiments.{binary}", *models, *arguments, f"--workdir={folder}"]
        parts.append(Part(part, command, folder))

    if ebm is not None:
        command = ["experiments.denoise", f"--ebm={ebm}", *data, f"--images={scaled(512, 16)}"]
        folder = workdir / "denoising"
        parts.append(Part("denoising", [*command, f"--workdir={folder}"], folder))
    count = f"--images={scaled(row.clean_images, 16)}"
    clean = ("--suite=clean", "--epsilon=0", count, "--draws=1", "--probe_images=0")
    add("clean", "evaluate", *clean, "--batch_size=100")
    for scale, rate in row.noise_scales:
        noise = (f"--noise_scale={scale}", f"--rate={rate}")
        add(f"clean_sigma_{scale}", "evaluate", *clean, "--batch_size=100", *noise)
    if not row.images:
        images, samples = f"--images={scaled(100, 4)}", f"--n={scaled(10_000, 100)}"
        denoise = ("--sigma=0.25", "--method=denoise", "--noise_scale=0.25")
        # Of a classifier that was never shown noise there is nothing to certify, at a third of the cost.
        add("certification", "certify", *denoise, images, samples, "--noundefended")
    else:
        many_calls = row.ebm is not None and row.ebm[0] == "dsm"
        # `paper` attacks the bare classifier, too; under `honest` that would cost a third of the time.
        alone = () if ebm is None else ("--noundefended",)
        l2 = row.images // 2
        if many_calls:
            # An answer is two hundred calls of the network: attacks look through one restart of the ten, in a
            # quarter of the steps, and the shared keys' gradients are not paid for.
            cheap = ("--attack_restarts=1",)
            honest = (*cheap, "--skip=shared keys", *alone)
            _add_attacks(add, row.images, l2, scaled, 100, 8, paper=cheap, honest=honest)
        else:
            _add_attacks(add, row.images, l2, scaled, 400, 32, honest=alone)
        if ebm is not None and not many_calls:
            # 4410 gradients an image: hours for each image of a purifier of two hundred calls.
            ball = ("--norm=linf", f"--epsilon={8 / 255:.6g}", f"--images={scaled(64, 16)}")
            grid = ("--suite=clean", *ball, "--sweep=steps_eot", "--probe_images=0", *alone)
            add("convergence", "evaluate", *grid)
    if row.model:
        # The model and the images that ship: what it shows, anybody sees in a minute.
        folder = workdir / "photographs"
        command = ["experiments.demo", f"--model={row.model}", f"--workdir={folder}"]
        parts.append(Part("photographs", command, folder))
    note = "full plan" if factor == 1 else f"{budget:g} of {row.minutes:g} minutes: {factor:.0%}"
    return Plan(parts, ebm, classifier, f"{note}. {row.note}", shipped_as(name), row.limits)


def _add_attacks(
    add, linf: int, l2: int, scaled, steps: int, probes: int,
    paper: Sequence[str] = (), honest: Sequence[str] = (),
) -> None:  # fmt: skip
    """steps, probes: of `honest`. paper, honest: further flags of each."""
    for (norm, epsilon), images in zip(_BALLS, (linf, l2), strict=True):
        ball = (f"--norm={norm}", f"--epsilon={epsilon:.6g}", f"--images={scaled(images, 16)}")
        name = f"{norm}_{epsilon:.3g}"
        if norm == "linf":
            # SPSA asks for 5120 answers an image, more than all the rest; with ADP BPDA+EOT found more wherever
            # both ran.
            short = (
                f"--steps={scaled(40, 2)}",
                f"--eot={scaled(4, 1)}",
                "--skip=SPSA",
                "--probe_images=0",
            )
            add(f"paper_{name}", "evaluate", "--suite=paper", *ball, *short, *paper)
        limits = (f"--steps={scaled(steps, 8)}", "--eot=1", f"--probe_images={scaled(probes, 4)}")
        add(f"honest_{name}", "evaluate", "--suite=honest", *ball, *limits, *honest)


def _needed(row: Row) -> list[str]:
    """The row's networks in the order in which they are trained."""
    order: list[str] = []

    def visit(network: str) -> None:
        for other in NETWORKS[network].given.values():
            visit(other)
        if network not in order:
            order.append(network)

    visit(row.classifier)
    if row.ebm is not None:
        visit(row.ebm[0])
    return order


def _training(network: str, shared: Path, data: list[str], steps: int) -> Part:
    made = NETWORKS[network]
    folder = shared / network
    given = [
        f"--{flag}={shared / other / NETWORKS[other].model}" for flag, other in made.given.items()
    ]
    command = [
        f"experiments.{made.binary}",
        f"--config=experiments/configs/{made.config}.py",
        f"--config.{made.section}.steps={steps}",
        *given,
        *data,
        f"--workdir={folder}",
    ]
    shipped = {made.model: f"cifar10_row_{network}.safetensors"}
    if "ebm" in made.given and made.binary == "train_defense":
        shipped["ebm.safetensors"] = f"cifar10_row_{network}_ebm.safetensors"
    return Part(network, command, folder, True, made.model, shipped, shared.name)
