"""The commands of a plan, and the models that they make."""

from pathlib import Path
from typing import NamedTuple


class Part(NamedTuple):
    """One command: its name, module and flags, and the folder that it writes into.

    model: of a training, the file that says it is finished.
    """

    name: str
    command: list[str]
    folder: Path
    is_training: bool = False
    model: str = "model.safetensors"

    @property
    def has_results(self) -> bool:
        """Whether the command writes results.json."""
        return not self.is_training


class Plan(NamedTuple):
    """The parts in order, the models they make, and what the budget did to them.

    ebm: None where a classifier alone is evaluated.
    """

    parts: list[Part]
    ebm: Path | None
    classifier: Path
    note: str
