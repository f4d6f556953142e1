"""TensorBoard's event files, by tensorboardX: scalars and pictures, without doubles after a restart."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from purify_jax.checks import InputError


def check_installed() -> None:
    """Raises InputError unless tensorboardX is there."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise InputError(
            "tensorboard: needs the package tensorboardX (pip install 'purify_jax[tensorboard]'), expected "
            "it installed, or no --tensorboard; metrics.jsonl has the same numbers"
        )


class Events:
    """An event file in ``folder`` for a run that continues after ``step``.

    Each start has a file of its own. It begins with a mark by which TensorBoard drops what earlier files
    hold of later steps: a run that died after its last save does these again.
    """

    def __init__(self, folder: Path, step: int):
        check_installed()
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        # TensorBoard reads a folder's files in the order of their names: seconds, host, then this.
        suffix = f".{step:010d}.{os.getpid()}"
        self._writer = EventsWriter(str(folder / "events"), suffix)
        start = SessionLog(status=SessionLog.START)
        self._add(step=step + 1, session_log=start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._add(step=step, summary=scalar(name, value))

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """An image ``[h, w, 1 or 3]`` in [0, 1]."""
        from tensorboardX.summary import image

        levels = np.rint(np.clip(np.nan_to_num(picture), 0, 1) * 255).astype(np.uint8)
        self._add(step=step, summary=image(name, levels, dataformats="HWC"))

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()

    def _add(self, **content: Any) -> None:
        import time

        self._writer.write_event(self._event(wall_time=time.time(), **content))
        self._writer.flush()
