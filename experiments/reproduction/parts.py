"""The commands of a plan, the models that they make, and how a budget scales them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import purify_jax as pj

#: In a training part's folder, it says that the network was not trained there.
SHIPPED = "shipped.txt"


class Part(NamedTuple):
    """One command: its name, module and flags, and the folder that it writes into.

    shipped: of a training, the file that it writes → its name in pretrained/. The first says that it is finished.
    shared: for a training that several suites need, the folder of results/ with its record.
    """

    name: str
    command: list[str]
    folder: Path
    shipped: Mapping[str, str] = MappingProxyType({})
    shared: str | None = None

    @property
    def is_training(self) -> bool:
        """Whether the command trains; every other command writes results.json."""
        return bool(self.shipped)

    def networks(self) -> dict[str, str]:
        """Flag → digest of each file of a network that the command reads and that was trained on this machine."""
        given = (x.removeprefix("--").partition("=")[::2] for x in self.command)
        files = {name: Path(value) for name, value in given if value.endswith(".safetensors")}
        here = {n: p for n, p in files.items() if p.is_file() and not (p.parent / SHIPPED).exists()}
        return {name: pj.pretrained.digest(path) for name, path in here.items()}

    def is_done(self, result: Mapping[str, Any], command: str) -> bool:
        """Whether the result is of this command, and of the networks that it would read now."""
        recorded = result.get("network_digests", {})
        now = self.networks()
        return result.get("command") == command and now == {n: recorded.get(n) for n in now}


class Plan(NamedTuple):
    """The parts in order, the models they make, and what the budget did to them.

    score_model: None where a classifier alone is evaluated. model: the name in pretrained/ that the two ship by.
    limits: what its card says that the results do not cover.
    """

    parts: list[Part]
    score_model: Path | None
    classifier: Path
    note: str
    model: str
    limits: str = ""


class Draft:
    """Collects the parts of a plan. A budget in minutes scales what the full plan does in ``minutes``."""

    def __init__(
        self, workdir: Path, data_dir: str | None, budget: float | None, minutes: float
    ) -> None:
        self.workdir = workdir
        self.data = [f"--data_dir={data_dir}"] if data_dir else []
        self.factor = 1.0 if budget is None else min(1.0, budget / minutes)
        share = f"{budget:g} of {minutes:g} minutes: {self.factor:.0%}" if budget else ""
        self.budget = share if self.factor < 1 else "full plan"
        self.parts: list[Part] = []
        self.models: Sequence[str] = ()

    def scaled(self, number: float, least: int) -> int:
        """The number within the budget."""
        return max(least, round(number * self.factor))

    def images(self, number: int, least: int = 16) -> str:
        """--images within the budget."""
        return f"--images={self.scaled(number, least)}"

    def train(
        self,
        name: str,
        binary: str,
        steps: str,
        given: Mapping[str, Path],
        folder: Path,
        shipped: Mapping[str, str],
        config: str,
        shared: str | None = None,
    ) -> None:
        """Adds a training. steps: its flag; given: flag → the network that it begins with."""
        networks = [f"--{flag}={path}" for flag, path in given.items()]
        config = f"--config=experiments/configs/{config}.py"
        command = [f"experiments.{binary}", config, steps, *networks, *self.data]
        command.append(f"--workdir={folder}")
        self.parts.append(Part(name, command, folder, shipped, shared))

    def add(self, name: str, binary: str, *arguments: str) -> None:
        """Adds a command that writes results."""
        folder = self.workdir / name
        command = [f"experiments.{binary}", *arguments, f"--workdir={folder}"]
        self.parts.append(Part(name, command, folder))

    def clean(self, name: str, images: int, *more: str) -> None:
        """Adds an evaluation without attacks."""
        fixed = ("--draws=1", "--probe_images=0", "--batch_size=100")
        suite = ("--suite=clean", "--epsilon=0", self.images(images))
        self.add(name, "evaluate", *self.models, *suite, *fixed, *more)

    def attack(
        self, suite: str, norm: str, epsilon: float, images: int, steps: int, eot: int, *more: str
    ) -> None:
        """Adds an evaluation under a suite of attacks."""
        threat = (f"--norm={norm}", f"--epsilon={epsilon:.6g}", self.images(images))
        effort = (f"--steps={steps}", f"--eot={eot}")
        arguments = (f"--suite={suite}", *threat, *effort, *more)
        self.add(evaluation_name(suite, norm, epsilon), "evaluate", *self.models, *arguments)


def evaluation_name(suite: str, norm: str, epsilon: float) -> str:
    """The name of an attacked evaluation's part and file."""
    return f"{suite}_{norm}_{epsilon:.3g}"
