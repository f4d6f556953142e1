"""Networks and their kernels by themselves, against the same in PyTorch."""

from typing import Any

from benchmarks.networks import passes, subjects, training
from benchmarks.settings import Settings


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Forward pass, input gradient and training step of every chosen network."""
    rows = []
    for subject in subjects.chosen(settings):
        rows += passes.measure(settings, subject)
        rows += training.measure(settings, subject)
    return rows
