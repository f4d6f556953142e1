"""The commands of a plan, and the models that they make."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple


class Part(NamedTuple):
    """One command: its name, module and flags, and the folder that it writes into.

    model: of a training, the file that says it is finished.
    shipped: file → the one of pretrained/ that stands for it where training finished on another machine.
    shared: for a training that several suites need, the folder of results/ with its record.
    """

    name: str
    command: list[str]
    folder: Path
    is_training: bool = False
    model: str = "model.safetensors"
    shipped: Mapping[str, str] = MappingProxyType({})
    shared: str | None = None

    @property
    def has_results(self) -> bool:
        """Whether the command writes results.json."""
        return not self.is_training


class Plan(NamedTuple):
    """The parts in order, the models they make, and what the budget did to them.

    ebm: None where a classifier alone is evaluated. model: the name in pretrained/ that the two ship by.
    limits: what its card says that the figures do not cover.
    """

    parts: list[Part]
    ebm: Path | None
    classifier: Path
    note: str
    model: str
    limits: str = ""
