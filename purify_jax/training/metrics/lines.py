"""The metrics of a run: ``metrics.jsonl``, and TensorBoard's events where they are asked for."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from purify_jax.atomic import write_atomically
from purify_jax.training.metrics.tensorboard import Events


class Metrics:
    """Writes each dispatch's means; a context that closes its files."""

    def __init__(self, workdir: Path, step: int, tensorboard: bool):
        path = workdir / "metrics.jsonl"
        lines = [json.dumps(record) + "\n" for record in read_metrics(workdir, step)]
        write_atomically(path, "".join(lines))
        self._lines = open(path, "a")  # noqa: SIM115
        self._events = Events(workdir / "tensorboard", step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers at the end of a dispatch."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        if self._events is not None:
            self._events.scalars(step, values)

    def picture(self, step: int, name: str, picture: np.ndarray | None) -> None:
        """An image ``[h, w, c]`` in [0, 1], for TensorBoard alone; None is left out."""
        if self._events is not None and picture is not None:
            self._events.picture(step, name, picture)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._lines.close()
        if self._events is not None:
            self._events.close()


def open_metrics(workdir: str | Path, step: int, tensorboard: bool = False) -> Metrics:
    """Opens a run's metrics to continue after ``step``: what a run that died wrote of later steps is gone."""
    return Metrics(Path(workdir), step, tensorboard)


def read_metrics(workdir: str | Path, step: int) -> list[Mapping[str, float]]:
    """The metrics of a run up to ``step``, one mapping per dispatch."""
    path, found = Path(workdir) / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):  # the line being written when the process died
            record = json.loads(line)
            if record["step"] <= step:
                found.append(record)
    return found
